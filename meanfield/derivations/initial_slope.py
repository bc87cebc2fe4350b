"""Initial velocity of the cosine from orthogonal tokens (docs/theory/dynamics.md, 1.2)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import N, beta, g
from meanfield.derivations.two_mode_contraction import RESULT as KAPPA

slope = sp.Symbol("slope")


def _steps(candidate):
    yield Step("gamma' at g = 1", COSINE.claim.rhs.subs(kappa, KAPPA.claim.rhs).subs(g, 1), candidate)


RESULT = Derivation(
    statement="gamma'(0) from gamma = 0 for Post-LN, Mix-LN and sqrt scaling (s = 1) and Pre-LN (s = r_0).",
    source="Theorem 4.1 of arXiv:2510.22026",
    status="proved",
    claim=sp.Eq(slope, 2 / (s * (sp.exp(beta) + N - 1))),
    arguments=(beta, N, s),
    steps=_steps,
)
