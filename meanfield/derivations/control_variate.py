"""The weighted spread that is left after subtracting the mean value's own sampling error.

docs/theory/reductions.md.
"""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

Q, V, variance, N = sp.symbols("Q V sigma2 N", positive=True)
spread = sp.Symbol("spread")


def _steps(candidate):
    a, v = sp.symbols("A v", real=True)
    out, mean = sp.symbols("o vbar", real=True)
    sums = {(0, 0): N, (0, 1): N * mean, (1, 0): sp.Integer(1), (1, 1): out}

    def total(summand):
        """sum_j over N keys of a polynomial in A_j and v_j: each power sum a symbol, but sum A = 1, sum A v = o."""
        terms = sp.Poly(sp.expand(summand), a, v).terms()
        return sum(c * sums.get(power, sp.Symbol("S{}{}".format(*power))) for power, c in terms)

    yield Step("the moves of the mean cancel: sum_j (v_j - vbar) = 0", total(v - mean), sp.Integer(0))
    yield Step("the moves of the output cancel: sum_j A_j (v_j - o) = 0", total(a * (v - out)), sp.Integer(0))
    measured = {
        Q: total((a * (v - out)) ** 2),
        V: total(a * (v - out) ** 2),
        variance: total((v - mean) ** 2) / N,
    }
    left = total((a * (v - out) - (v - mean) / N) ** 2)
    yield Step("the square written out, N keys", left, candidate.subs(measured, simultaneous=True))


RESULT = Derivation(
    statement="sum_j |A_j (v_j - o) - (v_j - vbar)/N|^2 = Q - 2 V_A/N + sigma_v^2/N.",
    source="docs/theory/reductions.md, control variate",
    status="derived",
    claim=sp.Eq(spread, Q - 2 * V / N + variance / N),
    arguments=(Q, V, variance, N),
    steps=_steps,
)
