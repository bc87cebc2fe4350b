"""How soon heavy entries change the free law: the initial slope of ln m (docs/theory/finite_n.md, condensation)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

N, v, first, second = sp.symbols("N v mu q", positive=True)
L2, L4 = sp.symbols("L_2 L_4", real=True)
log_slope = sp.Symbol("ln_c_1")


def _steps(candidate):
    h1, h2 = 1 - v * N * first, sp.Integer(1)  # E h to first order in v, E h^2 to order zero, E x = mu, E x^2 = q
    mean = N * first * h1
    mean_square = N * second * h2 + N * (N - 1) * first**2 * h2
    S = sp.Symbol("S")
    cavity = sp.series(1 - 1 / (1 + v * S), v, 0, 3).removeO()
    yield Step("1 - h = 1 - 1/(1 + v S), S = sum x_j h_j", sp.expand(cavity), v * S - v**2 * S**2)
    theta = sp.series(v * mean - v**2 * mean_square, v, 0, 3).removeO()
    c1 = sp.Symbol("c_1")
    law = theta * (1 + (2 + c1) * theta)  # theta m(theta)/(1 - theta)^2 to second order
    miss = sp.expand(law - v * N * first).coeff(v, 2)
    slope = sp.expand(sp.solve(miss, c1)[0])
    yield Step("v N mu = theta m(theta)/(1 - theta)^2 gives c_1", slope, (second / first**2 - 1) / N)
    leading = sp.limit(slope * N / (second / first**2), second, sp.oo) / N * (second / first**2)
    logs = {first: sp.exp(L2), second: sp.exp(L4)}  # x = e^{2l} up to a factor
    yield Step("for E x^2 >> (E x)^2, x = e^{2l}", leading.subs(logs), sp.exp(candidate))


RESULT = Derivation(
    statement="(ln m)'(0) = E x^2/(N (E x)^2) - 1/N for independent entries, squares x ~ e^{2l}, L_p = ln E e^{pl}.",
    source="docs/theory/finite_n.md, condensation",
    status="derived",
    claim=sp.Eq(log_slope, L4 - 2 * L2 - sp.log(N)),
    arguments=(L2, L4, N),
    steps=_steps,
)
