"""Local exponent of the collapse under Pre-LN (docs/theory/dynamics.md, 2.2 B)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import N, g

time_over_norm = sp.Symbol("q", positive=True)
exponent = sp.Symbol("exponent")
t, r = sp.symbols("t r", positive=True)


def _steps(candidate):
    spread_velocity = -COSINE.claim.rhs.subs(s, r)
    yield Step("-d ln g/d ln t = -t g'/g", -t * spread_velocity / g, candidate.subs(time_over_norm, t / r))
    yield Step("2 when r = t, kappa = 1, g = 0", candidate.subs({time_over_norm: 1, kappa: 1, g: 0}), sp.Integer(2))


RESULT = Derivation(
    statement="-d ln(1 - gamma)/d ln t under Pre-LN, q = alpha t/r; tends to 2 and starts at 0.",
    source="docs/theory/dynamics.md, 2.2 B",
    status="derived",
    claim=sp.Eq(exponent, 2 * time_over_norm * kappa * (1 - (N - 1) * g / N)),
    arguments=(g, kappa, N, time_over_norm),
    steps=_steps,
)
