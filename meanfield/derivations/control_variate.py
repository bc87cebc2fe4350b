"""The weighted spread that is left after subtracting the mean value's own sampling error.

docs/theory/reductions.md.
"""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

Q, V, variance, N = sp.symbols("Q V sigma2 N", positive=True)
spread = sp.Symbol("spread")


def _steps(candidate):
    weights = sp.symbols("A1:3", positive=True)
    weights = (*weights, 1 - sum(weights))
    values = sp.symbols("v1:4", real=True)
    pairs = list(zip(weights, values, strict=True))
    out, mean = sum(a * v for a, v in pairs), sum(values) / 3
    yield Step("the moves of the mean cancel: sum_j (v_j - vbar) = 0", sum(v - mean for v in values), sp.Integer(0))
    measured = {
        Q: sum((a * (v - out)) ** 2 for a, v in pairs),
        V: sum(a * (v - out) ** 2 for a, v in pairs),
        variance: sum((v - mean) ** 2 for v in values) / 3,
        N: 3,
    }
    left = sum((a * (v - out) - (v - mean) / 3) ** 2 for a, v in pairs)
    yield Step("the square written out, three keys", left, candidate.subs(measured, simultaneous=True))


RESULT = Derivation(
    statement="sum_j |A_j (v_j - o) - (v_j - vbar)/N|^2 = Q - 2 V_A/N + sigma_v^2/N.",
    source="docs/theory/reductions.md, control variate",
    status="derived",
    claim=sp.Eq(spread, Q - 2 * V / N + variance / N),
    arguments=(Q, V, variance, N),
    steps=_steps,
)
