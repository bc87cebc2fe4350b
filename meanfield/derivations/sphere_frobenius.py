"""The Frobenius norm of softmax attention between uniform directions, many keys (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

L1, L2 = sp.symbols("L_1 L_2", real=True)
kappa = sp.Symbol("kappa", positive=True)
c = sp.Symbol("c", real=True)
energy = sp.Symbol("F2")


def _steps(candidate):
    moment = sp.sinh(kappa) / kappa
    yield Step("E e^l at D = 3", sp.integrate(sp.exp(kappa * c), (c, -1, 1)) / 2, moment, _exponential)
    mean_square = sp.integrate(sp.exp(2 * kappa * c), (c, -1, 1)) / 2 / moment**2
    exact = candidate.subs({L1: sp.log(moment), L2: sp.log(moment.subs(kappa, 2 * kappa))})
    yield Step("E K^2 of the kernel K = e^l/E e^l", mean_square, exact, _exponential)
    kernel = sum((kappa * c) ** j / sp.factorial(j) for j in range(6))
    sums = [sp.integrate(sp.expand(sp.legendre(k, c) * kernel), (c, -1, 1)) / 2 for k in range(3)]
    parseval = sum((2 * k + 1) * (value / sums[0]) ** 2 for k, value in enumerate(sums))
    yield Step(
        "Parseval: sum multiplicity sigma^2 up to kappa^5 from three degrees",
        sp.series(parseval, kappa, 0, 6).removeO(),
        sp.series(kappa * sp.coth(kappa), kappa, 0, 6).removeO(),
    )
    yield Step("which is E K^2", exact, kappa * sp.coth(kappa), _exponential)
    s2 = sp.Symbol("s2", positive=True)
    yield Step("Gaussian logits, D -> oo at fixed s^2", candidate.subs({L1: s2 / 2, L2: 2 * s2}), sp.exp(s2))


def _exponential(expression):
    return sp.simplify(expression.rewrite(sp.exp))


RESULT = Derivation(
    statement="|A|_F^2 = E e^{2l}/(E e^l)^2 = exp(L_2 - 2 L_1), L_p = ln E e^{p l}, for many keys.",
    source="docs/theory/finite_n.md, exact statistics of one row",
    status="derived",
    claim=sp.Eq(energy, sp.exp(L2 - 2 * L1)),
    arguments=(L1, L2),
    steps=_steps,
)
