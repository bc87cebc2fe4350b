"""First integral of the equiangular Pre-LN flow: r^2 g = r_0^2 g_0 exp J(g) (docs/theory/dynamics.md, 2.1)."""

import sympy as sp
from sympy.codegen.cfunctions import expm1

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import RESULT as RADIAL
from meanfield.derivations.equiangular_radial import N, beta, delta, g, other

integrand = sp.Symbol("dJ/ds")
r = sp.Symbol("r", positive=True)


def _steps(candidate):
    g_velocity = -COSINE.claim.rhs.subs({kappa: N * other, s: r})
    r_velocity = RADIAL.claim.rhs.subs(delta, CONTRACTION.claim.rhs)
    # J(g) is the integral of the integrand from g to g_0, so that d ln(r^2 g)/dg = dJ/dg = -integrand.
    yield Step(
        "(ln r^2 g)' = -integrand(g) g' along the Pre-LN flow",
        2 * r_velocity / r + g_velocity / g,
        -candidate * g_velocity,
    )


RESULT = Derivation(
    statement="Along the Pre-LN flow of equiangular tokens r^2 g exp(-J(g)) is constant, J the integral of this.",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(integrand, expm1(beta * g) / (g * (N * (1 - g) + g))),
    arguments=(g, beta, N),
    steps=_steps,
)
