"""The eigenvalues of Gaussian-kernel attention between Gaussian tokens, one dimension (docs/theory/spectra.md, 3.4)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

h = sp.Symbol("h", positive=True)
x, y = sp.symbols("x y", real=True)
eigenvalue = sp.Symbol("a")


def _steps(candidate):
    posterior = -h * (x - y) ** 2 / 2 - y**2 / 2
    yield Step("A averages y over a Gaussian of mean a x", sp.solve(sp.diff(posterior, y), y)[0], candidate * x)
    yield Step("of variance 1 - a", -1 / sp.diff(posterior, y, 2), 1 - candidate)
    yield Step(
        "whose density at y = x integrates to 1/(1 - a) = 1 + h = sum a^k: the trace", 1 / (1 - candidate), 1 + h
    )


RESULT = Derivation(
    statement="Attention e^{-beta (x - y)^2/2}, y ~ N(0, lambda), has eigenvalues a^k, a = h/(1 + h), h = beta lambda.",
    source="docs/theory/spectra.md, 3.4",
    status="derived",
    claim=sp.Eq(eigenvalue, h / (1 + h)),
    arguments=(h,),
    steps=_steps,
)
