"""The spread of equiangular tokens from their mode ratio u (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.mode_ratio import RESULT as RATIO
from meanfield.derivations.mode_ratio import N, g, u


def _steps(candidate):
    yield Step("u(g(u)) = u", RATIO.claim.rhs.subs(g, candidate), u)
    yield Step("g(u(g)) = g", candidate.subs(u, RATIO.claim.rhs), g)


RESULT = Derivation(
    statement="Inverse of the mode ratio u(g).",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(g, N * u / (1 + (N - 1) * u)),
    arguments=(u, N),
    steps=_steps,
)
