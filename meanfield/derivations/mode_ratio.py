"""The ratio u of the difference mode to the mean mode (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import N, first, g, gamma, inner, mean, second

u = sp.Symbol("u", positive=True)


def _steps(candidate):
    difference = first - second
    yield Step(
        "|x_i - x_j|^2/(2 N |m|^2), the norm r cancels",
        inner(difference, difference) / (2 * N * inner(mean, mean)),
        candidate,
    )
    yield Step("the same with gamma = 1 - g", candidate, (1 - gamma) / (1 + (N - 1) * gamma))


RESULT = Derivation(
    statement="u = |x_i - x_j|^2/(2 N |m|^2) of N equiangular tokens of equal norm as a function of their spread.",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(u, g / (N - (N - 1) * g)),
    arguments=(g, N),
    steps=_steps,
)
