"""The logit advantage of a token's own group when keys are merged (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

x, m = sp.symbols("x m", positive=True)
gap = sp.Symbol("gap")


def _steps(candidate):
    beta, gamma = sp.symbols("beta gamma", positive=True)
    for size in (2, 3):
        gram = sp.Matrix(2 * size, 2 * size, lambda i, j: 1 if i == j else gamma)
        query = gram[0, :]
        own = sum(query[j] for j in range(size)) / size
        foreign = sum(query[j] for j in range(size, 2 * size)) / size
        yield Step(
            f"groups of {size}: mean keys, first token as the query",
            beta * (own - foreign),
            candidate.subs({x: beta * (1 - gamma), m: size}, simultaneous=True),
        )


RESULT = Derivation(
    statement="With groups of m equiangular tokens merged to mean keys the own group's logit leads by x/m.",
    source="docs/theory/reductions.md, collapse",
    status="derived",
    claim=sp.Eq(gap, x / m),
    arguments=(x, m),
    steps=_steps,
)
