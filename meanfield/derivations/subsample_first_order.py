"""The first-order error of attention to a random share of the keys (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

f, Q = sp.symbols("f Q", positive=True)
mse = sp.Symbol("mse")


def _steps(candidate):
    kept = sp.symbols("B1:4", positive=True)
    weights = sp.symbols("A1:3", positive=True)
    weights = (*weights, 1 - sum(weights))
    values = sp.symbols("v1:4", real=True)
    total = sum(b * a for b, a in zip(kept, weights, strict=True))
    sampled = sum(b * a * v for b, a, v in zip(kept, weights, values, strict=True)) / total
    everywhere = dict.fromkeys(kept, f)
    exact = sum(a * v for a, v in zip(weights, values, strict=True))
    yield Step("keeping the same share of every key changes nothing", sampled.subs(everywhere), exact)
    squares = 0
    for b, a, v in zip(kept, weights, values, strict=True):
        slope = sp.diff(sampled, b).subs(everywhere)
        yield Step("delta method: response to one key (of three)", slope, a * (v - exact) / f, by=sp.cancel)
        squares += slope**2
    spread = sum((a * (v - exact)) ** 2 for a, v in zip(weights, values, strict=True))
    yield Step(
        "each indicator has variance f (1 - f), independently",
        f * (1 - f) * squares,
        candidate.subs(Q, spread),
        by=sp.cancel,
    )


RESULT = Derivation(
    statement="Attention to keys kept with probability f, renormalised, errs by ((1 - f)/f) sum A^2 |v - o|^2 to first "
    "order in 1/(f N_eff).",
    source="docs/theory/reductions.md, subsampling",
    status="derived",
    claim=sp.Eq(mse, (1 - f) / f * Q),
    arguments=(f, Q),
    steps=_steps,
)
