"""The factor between sums of powers of singular values and an integral over the resolvent (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

p, s, v, u = sp.symbols("p s v u", positive=True)
factor = sp.Symbol("c")


def _reflect(expression):
    """Gamma(1 + x) = x Gamma(x), then Gamma(x) Gamma(1 - x) = pi/sin(pi x)."""
    return sp.simplify(sp.gammasimp(sp.expand_func(expression)))


def _steps(candidate):
    resolvent = v * s**2 / (1 + v * s**2)
    density = sp.diff(resolvent, v)
    yield Step("dT for one singular value", density, s**2 / (1 + v * s**2) ** 2)
    a = 1 - p / 2
    scaled = sp.powsimp(v ** (-p / 2) * density * sp.diff(u / s**2, u), force=True).subs(v, u / s**2)
    yield Step(
        "with u = v s^2 the integrand is s^p u^{a-1}/(1 + u)^2, a = 1 - p/2",
        sp.powsimp(sp.expand_power_base(scaled, force=True), force=True),
        s**p * u ** (a - 1) / (1 + u) ** 2,
    )
    beta = sp.gamma(a) * sp.gamma(2 - a)
    reflected = sp.pi * (1 - a) / sp.sin(sp.pi * a)
    yield Step("B(a, 2 - a) by the reflection formula", beta / reflected, sp.Integer(1), _reflect)
    integral = sp.integrate((u ** (a - 1)).subs(p, 1) / (1 + u) ** 2, (u, 0, sp.oo))
    yield Step("the Euler integral done at p = 1", integral, reflected.subs(p, 1))
    yield Step("sum s^p = c(p) integral v^{-p/2} dT", candidate * reflected, sp.Integer(1))
    slope = sp.diff(sp.log(candidate), p).subs(p, 1)
    yield Step("d ln c/dp at p = 1, the -1 in sum s ln s", slope, sp.Integer(-1))


RESULT = Derivation(
    statement="sum s^p = c(p) int v^{-p/2} dT(v) over v > 0, T(v) = sum v s^2/(1 + v s^2), 0 < p < 2.",
    source="docs/theory/finite_n.md, sums over singular values",
    status="derived",
    claim=sp.Eq(factor, 2 * sp.sin(sp.pi * p / 2) / (sp.pi * p)),
    arguments=(p,),
    steps=_steps,
)
