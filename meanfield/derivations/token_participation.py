"""The participation ratio of unit tokens from their cosines (docs/theory/spectra.md, 3.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

N, q = sp.symbols("N q", positive=True)
participation = sp.Symbol("PR")


def _steps(candidate):
    size = 3
    cosines = sp.symbols("c12 c13 c23", real=True)
    gram = sp.Matrix(3, 3, [1, cosines[0], cosines[1], cosines[0], 1, cosines[2], cosines[1], cosines[2], 1])
    mean_square = sum(cosine**2 for cosine in cosines) / 3
    yield Step(
        "three tokens at any angles",
        gram.trace() ** 2 / (gram**2).trace(),
        candidate.subs({N: size, q: mean_square}),
        by=sp.cancel,
    )
    yield Step("tr G^2 = N + N (N - 1) q in general", N**2 / (N + N * (N - 1) * q), candidate, by=sp.cancel)


RESULT = Derivation(
    statement=(
        "PR = (tr G)^2/tr G^2 of the Gram matrix of N unit tokens with mean squared cosine q of distinct pairs; exact."
    ),
    source="docs/theory/spectra.md, 3.1",
    status="derived",
    claim=sp.Eq(participation, 1 / (1 / N + (1 - 1 / N) * q)),
    arguments=(N, q),
    steps=_steps,
)
