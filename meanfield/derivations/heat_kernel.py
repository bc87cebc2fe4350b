"""The Gaussian solution of the heat equation with a diffusivity that depends on time (docs/theory/diffusion.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

x, centre = sp.symbols("x c", real=True)
variance, mass = sp.symbols("s M", positive=True)
u = sp.Symbol("u")


def _steps(candidate):
    t = sp.Symbol("t", positive=True)
    diffusivity = sp.Function("D", positive=True)(t)
    spread = sp.Function("s", positive=True)(t)
    density = candidate.subs(variance, spread)
    yield Step(
        "u_t = D(t) u_xx when s' = 2 D(t)",
        sp.diff(density, t).subs(sp.diff(spread, t), 2 * diffusivity) / density,
        diffusivity * sp.diff(density, x, 2) / density,
    )
    drift, pull = sp.symbols("b theta", real=True)
    middle = sp.Function("c", real=True)(t)
    moving = density.subs(centre, middle)
    yield Step(
        "u_t = D u_xx + (theta x u + b u)_x when c' = -theta c - b and s' = 2 D - 2 theta s",
        sp.diff(moving, t).subs(
            {
                sp.diff(spread, t): 2 * diffusivity - 2 * pull * spread,
                sp.diff(middle, t): -pull * middle - drift,
            }
        )
        / moving,
        (diffusivity * sp.diff(moving, x, 2) + sp.diff((pull * x + drift) * moving, x)) / moving,
    )
    yield Step("mass M", sp.integrate(candidate.subs(centre, 0), (x, -sp.oo, sp.oo)), mass)


RESULT = Derivation(
    statement="A Gaussian of variance s and centre c solves the heat equation with linear drift.",
    source="docs/theory/diffusion.md, exact solutions",
    status="derived",
    claim=sp.Eq(u, mass * sp.exp(-((x - centre) ** 2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)),
    arguments=(x, centre, variance, mass),
    steps=_steps,
)
