"""How fast equiangular tokens collapse, from the weight that tokens leave to others (docs/theory/reductions.md)."""

from itertools import permutations

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

other, N = sp.symbols("w N", positive=True)
rate = sp.Symbol("kappa")


def _steps(candidate):
    # own = mean_i A_ii = 1 - w. Over all relabellings the entries of any row-stochastic matrix average to `own` on the
    # diagonal and to (1 - own)/(N - 1) off it.
    size = 3
    attention = sp.Matrix(size, size, lambda i, j: sp.Symbol(f"a{i}{j}", real=True))
    for i in range(size):
        attention[i, i] = 1 - sum(attention[i, j] for j in range(size) if j != i)
    average = sp.zeros(size, size)
    for order in permutations(range(size)):
        average += attention.extract(list(order), list(order)) / sp.factorial(size)
    own = attention.trace() / size
    entries = sp.Matrix(size, size, lambda i, j: own if i == j else (1 - own) / (size - 1))
    yield Step("the average over relabellings, three tokens", average, entries)
    own = 1 - other
    yield Step("N tokens: it multiplies differences by 1 - kappa", own - (1 - own) / (N - 1), 1 - candidate)
    # x_i' = sum_j A_ij x_j at unit norms and equal cosines: x_i'.x_j = gamma + (1 - gamma) A_ij, as rows sum to one.
    gamma = sp.Symbol("gamma", real=True)
    trace = N * own
    pairs = N * (N - 1) * gamma + (1 - gamma) * (N - trace)
    radial = (N - 1) * (N * gamma + (1 - gamma) * trace)
    moved = attention * sp.Matrix(size, size, lambda i, j: 1 if i == j else gamma)
    explicit = sum(moved[i, j] for i in range(size) for j in range(size) if i != j)
    measured = {other: 1 - attention.trace() / size, N: size}
    yield Step("sum over pairs of x_i'.x_j, three tokens", explicit, pairs.subs(measured, simultaneous=True))
    yield Step(
        "mean over the pairs i != j of x_i'.x_j + x_i.x_j' - gamma (x_i'.x_i + x_j'.x_j): "
        "gamma' = 2 kappa (1 - gamma)(1 + (N - 1) gamma)/N",
        2 * (pairs - gamma * radial) / (N * (N - 1)),
        2 * candidate * (1 - gamma) * (1 + (N - 1) * gamma) / N,
    )


RESULT = Derivation(
    statement="Tokens at equal cosines that leave the mean weight w to others approach each other at the rate kappa.",
    source="docs/theory/reductions.md, collapse",
    status="derived",
    claim=sp.Eq(rate, N * other / (N - 1)),
    arguments=(other, N),
    steps=_steps,
)
