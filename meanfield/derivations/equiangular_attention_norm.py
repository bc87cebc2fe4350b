"""Squared norm of the attention output of equiangular tokens (docs/theory/dynamics.md, 1.2)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import N, attended_first, delta, g, inner

squared = sp.Symbol("squared")


def _steps(candidate):
    yield Step(
        "A_i . A_i with A_i = (a, b, ..., b) in the tokens",
        inner(attended_first, attended_first),
        candidate.subs(delta, CONTRACTION.claim.rhs),
    )


RESULT = Derivation(
    statement="Squared norm |A_i|^2 of the attention output of N equiangular unit tokens.",
    source="docs/theory/dynamics.md, 1.2; arXiv:2510.22026",
    status="derived",
    claim=sp.Eq(squared, 1 - (1 - delta**2) * (N - 1) * g / N),
    arguments=(g, delta, N),
    steps=_steps,
)
