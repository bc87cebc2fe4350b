"""Depth at which fresh noise overtakes the initial differences (docs/theory/dynamics.md, 2.2 C)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.noise_floor import RESULT as FLOOR
from meanfield.derivations.noise_floor import C, L, alpha, variance

crossover = sp.Symbol("crossover")


def _steps(candidate):
    spread = FLOOR.claim.rhs
    exponent = -L * sp.diff(spread, L) / spread
    yield Step("local exponent half-way between 2 and 1", exponent.subs(L, candidate), sp.Rational(3, 2))
    yield Step(
        "both parts are equal there",
        spread.subs(variance, 0).subs(L, candidate),
        (spread.subs(C, 0)).subs(L, candidate),
    )
    yield Step("independent of the gain", sp.diff(candidate, alpha), sp.Integer(0))


RESULT = Derivation(
    statement="The depth L* at which the depth exponent of 1 - gamma turns from 2 to 1, C = r_0^2 g_0 K.",
    source="docs/theory/dynamics.md, 2.2 C",
    status="derived",
    claim=sp.Eq(crossover, C / variance),
    arguments=(C, variance),
    steps=_steps,
)
