"""The Pre-LN flow at beta = 0, or N = infinity, solved exactly (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import RESULT as RADIAL
from meanfield.derivations.equiangular_radial import N, delta
from meanfield.derivations.equiangular_radial import g as spread

r, r_0, c = sp.symbols("r r_0 c", positive=True)
t = sp.Symbol("t")


def _steps(candidate):
    # c^2 = (N - 1) r_0^2 g_0/N is the conserved token variance: beta = 0 means delta = 0, kappa = 1.
    g = N * c**2 / ((N - 1) * r**2)
    speed = RADIAL.claim.rhs.subs({spread: g, delta: 0})
    yield Step(
        "g = N c^2/((N - 1) r^2) solves g' = -gamma'",
        sp.diff(g, r) * speed,
        -COSINE.claim.rhs.subs({spread: g, kappa: 1, s: r}),
    )
    yield Step("dt/dr = 1/r'", sp.diff(candidate, r), 1 / speed)
    yield Step("t = 0 at r_0", candidate.subs(r, r_0), sp.Integer(0))


RESULT = Derivation(
    statement="Time until the norm is r under Pre-LN with flat attention; 1 - gamma = g_0 r_0^2/r^2 throughout.",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(t, r - r_0 - c * (sp.atanh(c / r) - sp.atanh(c / r_0))),
    arguments=(r, r_0, c),
    steps=_steps,
)
