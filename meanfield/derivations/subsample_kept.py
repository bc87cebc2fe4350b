"""Exact expectations over random subsets by 1/Z^2 = int t e^{-tZ} dt (docs/theory/reductions.md)."""

from itertools import product

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

f, a = sp.symbols("f a", positive=True)
kept = sp.Symbol("p")


def _steps(candidate):
    t, z = sp.symbols("t Z", positive=True)
    yield Step("inverse square as an integral", sp.integrate(t * sp.exp(-t * z), (t, 0, sp.oo)), z**-2)
    yield Step("inverse as an integral", sp.integrate(sp.exp(-t * z), (t, 0, sp.oo)), 1 / z)
    decays = sp.symbols("y1:3", positive=True)
    moves, offset = sp.symbols("u1:3", real=True), sp.Symbol("b", real=True)
    expectation = 0
    for subset in product((0, 1), repeat=2):
        chance = sp.Mul(*(f * y if keep else 1 - f for keep, y in zip(subset, decays, strict=True)))
        expectation += chance * (offset + sum(k * u for k, u in zip(subset, moves, strict=True))) ** 2
    tilted = [candidate.subs(a, -sp.log(y)) for y in decays]
    survival = sp.Mul(*(1 - f + f * y for y in decays))
    variance = sum(p * (1 - p) * u**2 for p, u in zip(tilted, moves, strict=True))
    mean = offset + sum(p * u for p, u in zip(tilted, moves, strict=True))
    yield Step(
        "all 4 subsets of two keys, weighted by prod y = e^{-t sum A}: independent keeps again, with probability p",
        expectation,
        survival * (variance + mean**2),
        by=sp.cancel,
    )


RESULT = Derivation(
    statement="Under the weight e^{-t sum_S A} keys kept with probability f stay independent, kept with probability p.",
    source="docs/theory/reductions.md, subsampling",
    status="derived",
    claim=sp.Eq(kept, f * sp.exp(-a) / (1 - f + f * sp.exp(-a))),
    arguments=(f, a),
    steps=_steps,
)
