"""How fast equiangular tokens collapse, from the weight that tokens leave to others (docs/theory/reductions.md)."""

from itertools import permutations

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

other, N = sp.symbols("w N", positive=True)
rate = sp.Symbol("kappa")


def _steps(candidate):
    size = 3
    gamma = sp.Symbol("gamma", real=True)
    attention = sp.Matrix(size, size, lambda i, j: sp.Symbol(f"a{i}{j}", real=True))
    for i in range(size):
        attention[i, i] = 1 - sum(attention[i, j] for j in range(size) if j != i)
    left = 1 - sum(attention[i, i] for i in range(size)) / size
    kappa = candidate.subs({other: left, N: size}, simultaneous=True)
    average = sp.zeros(size, size)
    for order in permutations(range(size)):
        average += attention.extract(list(order), list(order)) / sp.factorial(size)
    difference = sp.Matrix([1, -1, 0])
    yield Step(
        "the average over relabellings of any row-stochastic matrix (three tokens) multiplies differences by 1 - kappa",
        average * difference,
        (1 - kappa) * difference,
    )
    gram = sp.Matrix(size, size, lambda i, j: 1 if i == j else gamma)
    moved = attention * gram
    change = 0
    for i in range(size):
        for j in range(size):
            if i != j:
                change += (moved[i, j] - gamma * moved[i, i]) + (moved[j, i] - gamma * moved[j, j])
    change /= size * (size - 1)
    yield Step(
        "mean cosine of x_i' = sum_j A_ij x_j at equal cosines and unit norms: "
        "gamma' = 2 kappa (1 - gamma)(1 + (N - 1) gamma)/N",
        change,
        2 * kappa * (1 - gamma) * (1 + (size - 1) * gamma) / size,
    )


RESULT = Derivation(
    statement="Tokens at equal cosines that leave the mean weight w to others approach each other at the rate kappa.",
    source="docs/theory/reductions.md, collapse",
    status="derived",
    claim=sp.Eq(rate, N * other / (N - 1)),
    arguments=(other, N),
    steps=_steps,
)
