"""What a merge of keys and values loses, to second order (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

A, C, s2, mean, v, o = sp.symbols("A C s2 sbar2 v o", real=True)
term = sp.Symbol("term")


def _steps(candidate):
    eps = sp.Symbol("epsilon", real=True)
    first, second = sp.symbols("w1 w2", positive=True)
    d1, d2, u1, u2, v1, v2 = sp.symbols("d1 d2 u1 u2 v1 v2", real=True)
    groups = ((first, d1, u1, v1), (second, d2, u2, v2))
    mass = sum(w * (sp.exp(eps * d) + sp.exp(-eps * d)) for w, d, _, _ in groups)
    moment = sum(
        w * (sp.exp(eps * d) * (value + eps * u) + sp.exp(-eps * d) * (value - eps * u)) for w, d, u, value in groups
    )
    total = first + second
    weights = (first / total, second / total)
    out = sum(weight * group[3] for weight, group in zip(weights, groups, strict=True))
    exact = moment / mass
    yield Step("identical members merge without loss", exact.subs(eps, 0), out)
    yield Step("no first order", sp.diff(exact, eps).subs(eps, 0), sp.Integer(0))
    average = sum(weight * group[1] ** 2 for weight, group in zip(weights, groups, strict=True))
    predicted = sum(
        candidate.subs({A: weight, C: d * u, s2: d**2, mean: average, v: value, o: out}, simultaneous=True)
        for weight, (_, d, u, value) in zip(weights, groups, strict=True)
    )
    yield Step(
        "second order: two groups of two keys, logits l +- eps d, values v +- eps u, covariance d u, variance d^2",
        sp.diff(exact, eps, 2).subs(eps, 0) / 2,
        predicted,
    )


RESULT = Derivation(
    statement="Merged keys that carry their group's mass err by sum_g A_g [Cov_g(v, l) + (s_g^2 - sbar^2)(v_g - o)/2].",
    source="docs/theory/reductions.md, merging",
    status="derived",
    claim=sp.Eq(term, A * (C + (s2 - mean) * (v - o) / 2)),
    arguments=(A, C, s2, mean, v, o),
    steps=_steps,
)
