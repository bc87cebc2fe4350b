"""The rate of the width of coherent Pre-LN: Haff's law with its correction (docs/theory/diffusion.md, sense iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import RESULT as RADIAL
from meanfield.derivations.equiangular_radial import N, delta
from meanfield.derivations.equiangular_radial import g as spread

w, C, alpha = sp.symbols("w C alpha", positive=True)
rate = sp.Symbol("w'")


def _steps(candidate):
    r = sp.Symbol("r", positive=True)
    g = w**2
    # beta = 0 means kappa = 1 and delta = 0.
    spread_rate = -alpha * sp.limit(COSINE.claim.rhs.subs({spread: g, kappa: 1, s: r}), N, sp.oo)
    norm_rate = alpha * sp.limit(RADIAL.claim.rhs.subs({spread: g, delta: 0}), N, sp.oo)
    yield Step(
        "r^2 g is constant along the equiangular flow at N = infinity, beta = 0",
        2 * r * norm_rate * g + r**2 * spread_rate,
        sp.Integer(0),
    )
    yield Step(
        "w' = g'/(2 w) with r = sqrt(C)/w",
        spread_rate.subs(r, sp.sqrt(C) / w) / (2 * w),
        candidate,
    )


RESULT = Derivation(
    statement="Coherent Pre-LN, V = I, beta = 0, N = infinity: w = sqrt(g), C = r^2 g, obeys Haff's law to O(g).",
    source="docs/theory/diffusion.md, sense iv; docs/theory/notes.md 2.1",
    status="derived",
    claim=sp.Eq(rate, -alpha * w**2 * (1 - w**2) / sp.sqrt(C)),
    arguments=(w, C, alpha),
    steps=_steps,
)
