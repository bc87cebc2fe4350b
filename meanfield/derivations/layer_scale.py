"""Depth, gain and initial norm enter the Pre-LN flow only as alpha L/r_0 (docs/theory/dynamics.md, 2.2 B)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import s
from meanfield.derivations.equiangular_radial import RESULT as RADIAL

alpha, L, r_0, rho = sp.symbols("alpha L r_0 rho", positive=True)
scaled = sp.Symbol("scaled")


def _steps(candidate):
    # dg/dL = -alpha gamma'(s = r), dr/dL = alpha radial; in the new time and rho = r/r_0 nothing else is left.
    per_unit = 1 / sp.diff(candidate, L)
    velocity = COSINE.claim.rhs
    yield Step("dg/dq", per_unit * alpha * velocity.subs(s, r_0 * rho), velocity.subs(s, rho))
    yield Step("d rho/dq", per_unit * alpha * RADIAL.claim.rhs / r_0, RADIAL.claim.rhs)
    yield Step("q = 0 at the start", candidate.subs(L, 0), sp.Integer(0))


RESULT = Derivation(
    statement="In the time q = alpha L/r_0 the Pre-LN flow of (g, r/r_0) has no parameter but beta and N.",
    source="docs/theory/dynamics.md, 2.2 B",
    status="derived",
    claim=sp.Eq(scaled, alpha * L / r_0),
    arguments=(alpha, L, r_0),
    steps=_steps,
)
