"""The largest Gram eigenvalue of equiangular tokens (docs/theory/spectra.md, 3.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

n, g = sp.symbols("n g", positive=True)
top = sp.Symbol("top")


def _steps(candidate):
    size = 4
    gram = sp.Matrix(size, size, lambda i, j: 1 if i == j else 1 - g)
    mean, difference = sp.ones(size, 1), sp.Matrix([1, -1, 0, 0])
    yield Step("the mean is an eigenvector (n = 4)", gram * mean, candidate.subs(n, size) * mean, by=sp.expand)
    yield Step("every difference has the eigenvalue g", gram * difference, g * difference, by=sp.expand)
    yield Step("the trace is n", candidate + (n - 1) * g, n, by=sp.expand)


RESULT = Derivation(
    statement=(
        "n unit tokens with every pair at cosine 1 - g have Gram eigenvalues 1 + (n - 1)(1 - g), and g otherwise."
    ),
    source="docs/theory/spectra.md, 3.1",
    status="derived",
    claim=sp.Eq(top, 1 + (n - 1) * (1 - g)),
    arguments=(n, g),
    steps=_steps,
)
