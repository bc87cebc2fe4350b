"""The constant of collapse under Pre-LN: (alpha t)^2 (1 - gamma) -> C (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import RESULT as RADIAL
from meanfield.derivations.equiangular_radial import N, beta, delta, g
from meanfield.derivations.first_integral import RESULT as INTEGRAND
from meanfield.derivations.implicit_law import RESULT as IMPLICIT
from meanfield.derivations.implicit_law import c, r, r_0

g_0, J_0, C = sp.symbols("g_0 J_0 C", positive=True)


def _steps(candidate):
    slope = RADIAL.claim.rhs.subs(delta, CONTRACTION.claim.rhs)
    yield Step("r' -> 1 as g -> 0, so that r ~ t", sp.limit(slope.doit(), g, 0), sp.Integer(1))
    near = sp.limit(INTEGRAND.claim.rhs.rewrite(sp.exp), g, 0)
    yield Step("the integrand is finite at g = 0, so that J(g) tends to J_0", near, beta / N)
    # r^2 g e^{-J(g)} keeps its value (first_integral); J(g_0) = 0 at the start, and at collapse r^2 g = t^2 g.
    J = sp.Function("J")
    invariant = r**2 * g * sp.exp(-J(g))
    at_start = invariant.subs({r: r_0, g: g_0}).subs(J(g_0), 0)
    at_collapse = invariant.subs(J(g), J_0).subs(g, candidate / r**2)
    yield Step("the invariant at the start is that at collapse, where r^2 g = C and J = J_0", at_start, at_collapse)
    conserved = N * c**2 / (N - 1)
    ratio = sp.limit(IMPLICIT.claim.rhs.subs(r_0, c + 1) / r, r, sp.oo)
    yield Step(
        "t^2 g = (t/r)^2 r^2 g of the exact solution at beta = 0, where J = 0 and r^2 g is conserved (r_0 = c + 1)",
        ratio**2 * conserved,
        candidate.subs({r_0: c + 1, g_0: conserved / (c + 1) ** 2, J_0: 0}),
    )


RESULT = Derivation(
    statement="Pre-LN collapse of equiangular tokens: t^2 (1 - gamma) tends to C = r_0^2 g_0 K, K = exp J(0).",
    source="docs/theory/dynamics.md, 2.1; the exponent is Theorem 4.1 of arXiv:2510.22026",
    status="derived",
    claim=sp.Eq(C, r_0**2 * g_0 * sp.exp(J_0)),
    arguments=(r_0, g_0, J_0),
    steps=_steps,
)
