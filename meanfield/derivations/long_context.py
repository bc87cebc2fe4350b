"""Cosine of the outputs of one attention layer on equiangular tokens (docs/theory/dynamics.md, 1.4)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import N, attended_first, attended_second, delta, g, inner

cosine = sp.Symbol("cosine")


def _steps(candidate):
    yield Step(
        "A_i . A_j/|A_i|^2, all outputs being equally long",
        inner(attended_first, attended_second) / inner(attended_first, attended_first),
        candidate.subs(delta, CONTRACTION.claim.rhs),
    )


RESULT = Derivation(
    statement="Cosine between the outputs of one attention layer (no skip) on N unit tokens with every pair at 1 - g.",
    source="arXiv:2510.05554; docs/theory/dynamics.md, 1.4",
    status="derived",
    claim=sp.Eq(cosine, 1 - delta**2 * g / (1 - (1 - delta**2) * (N - 1) * g / N)),
    arguments=(g, delta, N),
    steps=_steps,
)
