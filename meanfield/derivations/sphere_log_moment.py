"""The terms of E exp(kappa cos) over uniform directions (docs/theory/finite_n.md, damped kernel)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

kappa, j, D = sp.symbols("kappa j D", positive=True)
c = sp.Symbol("c", positive=True)
log_term = sp.Symbol("ln_term")


def _steps(candidate):
    weight = (1 - c**2) ** ((D - 1) / 2)
    primitive = c ** (2 * j + 1) * weight
    base = c ** (2 * j) * (1 - c**2) ** ((D - 3) / 2)
    yield Step(
        "E c^{2j+2} = (2j + 1)/(2j + D) E c^{2j}: a derivative that vanishes at both ends",
        sp.simplify(sp.diff(primitive, c) / base),
        sp.expand((2 * j + 1) - (2 * j + D) * c**2),
    )
    term = sp.exp(candidate.replace(sp.loggamma, lambda x: sp.log(sp.gamma(x))))
    growth = sp.gammasimp(sp.simplify(term.subs(j, j + 1) / term))
    yield Step(
        "times kappa^2/((2j + 1)(2j + 2)) of the exponential series: the next term",
        growth,
        (2 * j + 1) / (2 * j + D) * kappa**2 / ((2 * j + 1) * (2 * j + 2)),
    )
    yield Step("the first is E 1", sp.simplify(term.subs(j, 0)), sp.Integer(1))


RESULT = Derivation(
    statement="E e^{kappa c} = sum_j (kappa^2/4)^j/(j! (D/2)_j) for a uniform direction with cosine c.",
    source="docs/theory/finite_n.md, damped kernel",
    status="derived",
    claim=sp.Eq(
        log_term,
        j * sp.log(kappa**2 / 4) - sp.loggamma(j + 1) - sp.loggamma(D / 2 + j) + sp.loggamma(D / 2),
    ),
    arguments=(j, kappa, D),
    steps=_steps,
)
