"""The share of a frozen softmax row on single keys, E sum A^2 -> 1 - T/T_c (docs/theory/finite_n.md, condensation)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

N, s2, t, y = sp.symbols("N s2 t y", positive=True)
x, l = sp.symbols("x l", positive=True)
participation = sp.Symbol("participation")


def _steps(candidate):
    edge = sp.sqrt(2 * s2 * sp.log(N))
    slope = sp.diff(-(l**2) / (2 * s2), l).subs(l, edge)
    exponent = sp.sqrt(2 * sp.log(N) / s2)
    yield Step(
        "at the largest logit ln density falls with slope -x: weights y = e^l have density ~ y^{-1-x}", slope, -exponent
    )
    by_parts = sp.diff(-(1 - sp.exp(-t * y)) * y**-x, y)
    yield Step(
        "int (1 - e^{-ty}) x y^{-1-x} dy = t int e^{-ty} y^{-x} dy by parts",
        by_parts,
        (1 - sp.exp(-t * y)) * x * y ** (-1 - x) - t * sp.exp(-t * y) * y**-x,
    )
    gamma = sp.Symbol("a", positive=True)  # 1 - x, between 0 and 1
    decay = t * sp.integrate(sp.exp(-t * y) * y ** (gamma - 1), (y, 0, sp.oo))
    decay = decay.subs(gamma, 1 - x)
    yield Step("phi^N = exp(-C t^x), C = Gamma(1 - x)", decay, sp.gamma(1 - x) * t**x)
    second = x * sp.integrate(y**gamma * sp.exp(-t * y), (y, 0, sp.oo)).subs(gamma, 1 - x)
    yield Step("E[y^2 e^{-ty}] = x Gamma(2 - x) t^{x-2}", second, x * sp.gamma(2 - x) * t ** (x - 2))
    cumulative = -sp.gamma(2 - x) / sp.gamma(1 - x) * sp.exp(-sp.gamma(1 - x) * t**x)
    integrand = t * second * sp.exp(-sp.gamma(1 - x) * t**x)
    yield Step(
        "a primitive of t E[y^2 e^{-ty}] phi^N (1/Z^2 = int t e^{-tZ} dt)",
        sp.diff(cumulative, t) / integrand,
        sp.Integer(1),
    )
    total = sp.gammasimp(-cumulative.subs(t, 0).subs(0**x, 0))
    yield Step("from 0 to infinity", total.subs(x, exponent), candidate)


RESULT = Derivation(
    statement="E sum A^2 = 1 - x for weights of tail exponent x, x = T/T_c = sqrt(2 ln N)/s for N logits N(0, s^2).",
    source="docs/theory/finite_n.md, condensation; Derrida 1981, Poisson-Dirichlet law",
    status="derived",
    claim=sp.Eq(participation, 1 - sp.sqrt(2 * sp.log(N) / s2)),
    arguments=(s2, N),
    steps=_steps,
)
