"""The logit advantage of a token's own group when keys are merged (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

x, m = sp.symbols("x m", positive=True)
gap = sp.Symbol("gap")


def _steps(candidate):
    beta, gamma = sp.symbols("beta gamma", positive=True)
    # A token's mean cosine to the m keys of its own group, itself included; to those of another group it is gamma.
    own = (1 + (m - 1) * gamma) / m
    for size in (2, 3):
        query = [1 if j == 0 else gamma for j in range(size)]
        yield Step(f"cosine to the mean key of the own group of {size}", sp.Add(*query) / size, own.subs(m, size))
    yield Step("groups of m", beta * (own - gamma), candidate.subs(x, beta * (1 - gamma)))


RESULT = Derivation(
    statement="With groups of m equiangular tokens merged to mean keys the own group's logit leads by x/m.",
    source="docs/theory/reductions.md, collapse",
    status="derived",
    claim=sp.Eq(gap, x / m),
    arguments=(x, m),
    steps=_steps,
)
