"""Attention without skip connection cubes small distances (docs/theory/dynamics.md, 1.8)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.skipless_difference import RESULT as EXACT
from meanfield.derivations.skipless_difference import N, beta, distance

after = sp.Symbol("Delta_next")


def _steps(candidate):
    exact = EXACT.claim.rhs.rewrite(sp.exp)
    yield Step("leading order of the exact law", sp.limit(exact / distance**3, distance, 0), candidate / distance**3)
    scaled = sp.sqrt(beta / (2 * N))
    yield Step("sqrt(beta/2N) Delta is cubed: its logarithm triples", scaled * candidate, (scaled * distance) ** 3)


RESULT = Derivation(
    statement="Distance of the outputs of x <- A x for beta Delta^2 << 1: L layers raise it to the power 3^L.",
    source="docs/theory/dynamics.md, 1.8; the bound with this power is arXiv:2103.03404",
    status="derived",
    claim=sp.Eq(after, beta * distance**3 / (2 * N)),
    arguments=(distance, beta, N),
    steps=_steps,
)
