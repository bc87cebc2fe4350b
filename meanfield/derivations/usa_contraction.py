"""Contraction under unnormalised self-attention, USA (docs/theory/dynamics.md, 1.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa as kappa_symbol
from meanfield.derivations.equiangular_cosine import s
from meanfield.derivations.equiangular_radial import N, beta, first, g, gamma, inner, second

kappa = sp.Symbol("kappa_usa")


def _steps(candidate):
    own, other = sp.exp(beta) / N, sp.exp(beta * gamma) / N
    summed = [sp.Matrix([own, other, other]), sp.Matrix([other, own, other])]
    tangential = [v - inner(token, v) * token for token, v in zip((first, second), summed, strict=True)]
    yield Step(
        "(theta_i . theta_j)' with weights e^{beta theta_i . theta_j}/N that are not normalised",
        inner(tangential[0], second) + inner(first, tangential[1]),
        COSINE.claim.rhs.subs({kappa_symbol: candidate, s: 1}),
    )
    yield Step("near collapse", sp.limit(candidate, g, 0), sp.exp(beta))


RESULT = Derivation(
    statement="USA contracts differences of equiangular unit tokens at kappa, e^beta near collapse.",
    source="docs/theory/dynamics.md, 1.1; arXiv:2312.10794",
    status="derived",
    claim=sp.Eq(kappa, sp.exp(beta * (1 - g))),
    arguments=(g, beta),
    steps=_steps,
)
