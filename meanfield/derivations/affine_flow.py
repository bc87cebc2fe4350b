"""Affine self-similar solutions of the collapse equation with a width-dependent pull (docs/theory/diffusion.md, iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, w0, c, p = sp.symbols("t w_0 c p", positive=True)
x0, centre = sp.symbols("x_0 m", real=True)
position = sp.Symbol("x")


def _steps(candidate):
    x = sp.Symbol("x", real=True)
    profile = sp.Function("f")
    scale = sp.diff(candidate, x0)
    width = w0 * scale
    yield Step("every particle starts at x_0", candidate.subs(t, 0), x0)
    yield Step(
        "and is pulled to the mean, x' = -c w^p (x - m)", sp.diff(candidate, t), -c * width**p * (candidate - centre)
    )
    shrink = sp.Function("L", positive=True)(t)
    density = profile((x - centre) / shrink) / shrink
    pull = sp.Symbol("q")
    yield Step(
        "any profile f stays itself: u = f((x - m)/L)/L solves u_t = q ((x - m) u)_x when L' = -q L",
        sp.diff(density, t).doit().subs(sp.diff(shrink, t), -pull * shrink).doit(),
        sp.diff(pull * (x - centre) * density, x).doit(),
    )
    yield Step("with L the scale of the particles, whose rate is q = c w^p", sp.diff(scale, t), -c * width**p * scale)


RESULT = Derivation(
    statement="Particles of d_t mu = c div(mu w^p (x - m)), w the width of mu, keep their profile and shrink.",
    source="docs/theory/diffusion.md, sense iv",
    status="derived",
    claim=sp.Eq(position, centre + (x0 - centre) * (1 + p * c * w0**p * t) ** (-1 / p)),
    arguments=(x0, centre, t, w0, c, p),
    steps=_steps,
)
