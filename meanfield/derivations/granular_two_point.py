"""Two half masses under the granular-media equation (docs/theory/diffusion.md, sense iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, s0, p = sp.symbols("t s_0 p", positive=True)
deviation = sp.Symbol("s")


def _steps(candidate):
    masses = (sp.Rational(1, 2), sp.Rational(1, 2))
    places = (candidate, -candidate)
    gap = 2 * candidate
    force = -sum(mass * (places[0] - y) for mass, y in zip(masses, places, strict=True)) * gap**p
    yield Step("x' = -mean of (x - y)|x - y|^p over two half masses at +s and -s", sp.diff(candidate, t), force)
    yield Step("the initial deviation", candidate.subs(t, 0), s0)
    yield Step("p = 1: t s tends to 1/2", sp.limit(t * candidate.subs(p, 1), t, sp.oo), sp.Rational(1, 2))


RESULT = Derivation(
    statement="Standard deviation of two half masses under d_t mu = div(mu grad W * mu), W = |z|^{2+p}/(2+p).",
    source="Carrillo, McCann and Villani 2003 (rate t^{-1/p}); docs/theory/diffusion.md, sense iv",
    status="derived",
    claim=sp.Eq(deviation, s0 * (1 + p * (2 * s0) ** p * t) ** (-1 / p)),
    arguments=(t, s0, p),
    steps=_steps,
)
