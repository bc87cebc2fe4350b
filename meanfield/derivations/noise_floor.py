"""Spread after L coherent Pre-LN layers with fresh token noise (docs/theory/dynamics.md, 2.2 C)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

C, variance, alpha, L = sp.symbols("C sigma2 alpha L", positive=True)
N, r_0 = sp.symbols("N r_0", positive=True)
spread = sp.Symbol("spread")


def _steps(candidate):
    layer = sp.Symbol("l", integer=True, nonnegative=True)
    D, r = sp.Function("D"), sp.Function("r")
    # Independent noise of energy sigma^2 per token adds sigma^2 (1 - 1/N) to the token variance; attention that has
    # become flat (delta = 0) leaves it, and the mean grows by alpha a layer.
    variance_law = sp.rsolve(D(layer + 1) - D(layer) - variance * (1 - 1 / N), D(layer), {D(0): C * (1 - 1 / N)})
    norm_law = sp.rsolve(r(layer + 1) - r(layer) - alpha, r(layer), {r(0): r_0})
    g = (N / (N - 1) * variance_law / norm_law**2).subs(layer, L)
    yield Step("g = N/(N - 1) D_L/r_L^2 with r_0 left out against alpha L", g.subs(r_0, 0), candidate)
    yield Step("L g -> sigma^2/alpha^2 for every r_0", sp.limit(L * g, L, sp.oo), sp.limit(L * candidate, L, sp.oo))


RESULT = Derivation(
    statement="1 - gamma after L >> r_0/alpha layers whose fresh token noise has energy sigma^2 per layer and token.",
    source="docs/theory/dynamics.md, 2.2 C",
    status="derived",
    claim=sp.Eq(spread, (C + variance * L) / (alpha * L) ** 2),
    arguments=(C, variance, alpha, L),
    steps=_steps,
)
