"""The fourth moment of the singular values at N tokens (docs/theory/finite_n.md)."""

import sympy as sp
from sympy.codegen.cfunctions import log1p

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.finite_n_law import RESULT as FINITE_N_LAW
from meanfield.derivations.finite_n_law import theta

E, Q, N, v = sp.symbols("E Q N v", positive=True)
c1 = sp.Symbol("c_1", real=True)
quartic = sp.Symbol("Q_N")


def _steps(candidate):
    x, s = sp.symbols("x s", positive=True)
    term = sp.series(x * s / (1 + x * s), x, 0, 3).removeO()
    yield Step("a mode in T(v) and in P(w), to second order", term, x * s - x**2 * s**2)
    b = sp.Symbol("b")
    w = v + b * v**2
    stretch = sp.exp(FINITE_N_LAW.claim.rhs.subs(theta, (w * E - w**2 * Q) / N) + c1 * w * E / N)
    miss = sp.series(w * _plain(stretch) - v, v, 0, 3).removeO()
    root = sp.solve(miss.coeff(v, 2), b)[0]
    yield Step("v = w m/(1 - theta)^2 inverted: w = v - (2 + c_1) (E/N) v^2", root, -(2 + c1) * E / N)
    total = sp.expand((w * E - w**2 * Q).subs(b, root))
    yield Step("T = P(w) = v E + ...: the energy does not depend on N", total.coeff(v, 1), E)
    yield Step("... - v^2 Q_N", -total.coeff(v, 2), candidate)


def _plain(expression):
    return expression.replace(log1p, lambda y: sp.log(1 + y))


RESULT = Derivation(
    statement="sum s^4 = sum lambda^2 + (2 + c_1) (sum lambda)^2/N for v = w m/(1 - theta)^2, c_1 = (ln m)'(0).",
    source="docs/theory/finite_n.md, the law",
    status="derived",
    claim=sp.Eq(quartic, Q + (2 + c1) * E**2 / N),
    arguments=(Q, E, c1, N),
    steps=_steps,
)
