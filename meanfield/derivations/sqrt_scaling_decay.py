"""Decay under the scaling s = sqrt(t + 1) (docs/theory/dynamics.md, 1.2)."""

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.exponential_rate import RESULT as RATE

t, tau = sp.symbols("t tau", positive=True)
exponent = sp.Symbol("exponent")


def _steps(candidate):
    rate = RATE.claim.rhs.subs({kappa: 1, s: sp.sqrt(tau + 1)})
    yield Step("integral of 2/sqrt(t + 1)", sp.integrate(rate, (tau, 0, t)), candidate)


RESULT = Derivation(
    statement="With s = sqrt(t + 1), ln(1 - gamma) falls near collapse by 4 (sqrt(t + 1) - 1).",
    source="Theorem 4.1 of arXiv:2510.22026",
    status="proved",
    claim=sp.Eq(exponent, 4 * expm1(log1p(t) / 2)),
    arguments=(t,),
    steps=_steps,
)
