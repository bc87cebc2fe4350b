"""The contraction of differences by attention between equiangular tokens (docs/theory/dynamics.md, 2.1)."""

import sympy as sp
from sympy.codegen.cfunctions import expm1

from meanfield.derivations.derivation import Derivation, Step

g, beta, N = sp.symbols("g beta N", positive=True)
delta = sp.Symbol("delta")


def _steps(candidate):
    gamma = 1 - g
    normaliser = sp.exp(beta) + (N - 1) * sp.exp(beta * gamma)
    own, other = sp.exp(beta) / normaliser, sp.exp(beta * gamma) / normaliser
    yield Step("rows of A sum to one", own + (N - 1) * other, sp.Integer(1))
    size = 3
    attention = sp.Matrix(size, size, lambda i, j: (own if i == j else other).subs(N, size))
    difference = sp.Matrix([1, -1, 0])
    yield Step(
        "A = delta I + b 1 1^T multiplies a difference of tokens by delta = a - b (written out for N = 3)",
        attention * difference,
        (own - other).subs(N, size) * difference,
    )
    yield Step("a - b with e^beta cancelled", own - other, candidate)


RESULT = Derivation(
    statement="Attention between N unit tokens with every pair at cosine 1 - g multiplies differences by delta.",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(delta, -expm1(-beta * g) / (1 + (N - 1) * sp.exp(-beta * g))),
    arguments=(g, beta, N),
    steps=_steps,
)
