"""The constant of collapse under Pre-LN: (alpha t)^2 (1 - gamma) -> C (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import RESULT as RADIAL
from meanfield.derivations.equiangular_radial import N, beta, delta, g
from meanfield.derivations.first_integral import RESULT as INTEGRAND

r_0, g_0, J_0 = sp.symbols("r_0 g_0 J_0", positive=True)
t, C = sp.symbols("t C", positive=True)


def _steps(candidate):
    slope = RADIAL.claim.rhs.subs(delta, CONTRACTION.claim.rhs)
    yield Step("r' -> 1 as g -> 0, so that r ~ t", sp.limit(slope.doit(), g, 0), sp.Integer(1))
    near = sp.limit(INTEGRAND.claim.rhs.rewrite(sp.exp), g, 0)
    yield Step("the integrand is finite at g = 0, so that J(g) = J_0 - beta g/N + ...", near, beta / N)
    yield Step(
        "r^2 g = r_0^2 g_0 exp J(g) at g = C/t^2, r = t, for t -> infinity",
        sp.limit(t**2 * (C / t**2) - r_0**2 * g_0 * sp.exp(J_0 - beta * C / (N * t**2)), t, sp.oo),
        C - candidate,
    )


RESULT = Derivation(
    statement="Pre-LN collapse of equiangular tokens: t^2 (1 - gamma) tends to C = r_0^2 g_0 K, K = exp J(0).",
    source="docs/theory/dynamics.md, 2.1; the exponent is Theorem 4.1 of arXiv:2510.22026",
    status="derived",
    claim=sp.Eq(C, r_0**2 * g_0 * sp.exp(J_0)),
    arguments=(r_0, g_0, J_0),
    steps=_steps,
)
