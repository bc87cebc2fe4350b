"""The rate of the width of coherent Pre-LN: Haff's law with its correction (docs/theory/diffusion.md, sense iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

w, C, alpha = sp.symbols("w C alpha", positive=True)
rate = sp.Symbol("w'")


def _steps(candidate):
    r = sp.Symbol("r", positive=True)
    g = w**2
    spread_rate = -2 * alpha * g * (1 - g) / r
    norm_rate = alpha * (1 - g)
    yield Step(
        "r^2 g is constant under g' = -2 alpha g (1 - g)/r, r' = alpha (1 - g) (N = infinity, beta = 0)",
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
