"""The error of attending to one part of the keys only (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

rho, offset = sp.symbols("rho offset2", positive=True)
error = sp.Symbol("error")


def _steps(candidate):
    weights = sp.symbols("w1:5", positive=True)
    values = sp.symbols("v1:5", real=True)
    pairs = list(zip(weights, values, strict=True))

    def average(part):
        return sum(w * v for w, v in part) / sum(w for w, _ in part)

    own, rest, out = average(pairs[:2]), average(pairs[2:]), average(pairs)
    mass = sum(weights[:2]) / sum(weights)
    yield Step("the output is the mixture of both parts", out, mass * own + (1 - mass) * rest)
    yield Step(
        "four keys, two of them in the own frame",
        (out - own) ** 2,
        candidate.subs({rho: mass, offset: (rest - own) ** 2}, simultaneous=True),
    )


RESULT = Derivation(
    statement="Attention to the own frame, of mass rho, errs by (1 - rho)^2 |o_rest - o_own|^2: an identity.",
    source="docs/theory/reductions.md, frame attention",
    status="derived",
    claim=sp.Eq(error, (1 - rho) ** 2 * offset),
    arguments=(rho, offset),
    steps=_steps,
)
