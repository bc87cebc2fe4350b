"""What a merge of keys and values loses, to second order (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

A, C, s2, mean, v, o = sp.symbols("A C s2 sbar2 v o", real=True)
term = sp.Symbol("term")


def _steps(candidate):
    eps, shift = sp.symbols("epsilon c", real=True)
    # The sum over groups fixes its terms only together with these two symmetries.
    yield Step(
        "a common shift of all values", candidate.subs({v: v + shift, o: o + shift}, simultaneous=True), candidate
    )
    moved = candidate.subs({s2: s2 + shift, mean: mean + shift}, simultaneous=True)
    yield Step("a variance added to all groups", moved, candidate)
    first, second = sp.symbols("w1 w2", positive=True)
    w = (first, 2 * first, 3 * first, second, 4 * second)
    d, u, means = sp.symbols("d1:4", real=True), sp.symbols("u1:4", real=True), sp.symbols("v1:3", real=True)

    def closed(free, masses):
        """Deviations of mean zero under the masses: the last one follows from the others."""
        return (*free, -sum(m * x for m, x in zip(masses, free, strict=False)) / masses[-1])

    groups = []
    for keys, free, value in ((slice(0, 3), slice(0, 2), means[0]), (slice(3, 5), slice(2, 3), means[1])):
        masses = w[keys]
        groups.append((masses, closed(d[free], masses), closed(u[free], masses), value))
    members = [
        (m, dl, dv, value) for masses, dls, dvs, value in groups for m, dl, dv in zip(masses, dls, dvs, strict=True)
    ]
    mass = sum(m * sp.exp(eps * dl) for m, dl, _, _ in members)
    moment = sum(m * sp.exp(eps * dl) * (value + eps * dv) for m, dl, dv, value in members)
    total = sum(w)
    weights = [sum(masses) / total for masses, *_ in groups]
    out = sum(weight * group[3] for weight, group in zip(weights, groups, strict=True))

    def moments(masses, left, right):
        return sum(m * x * y for m, x, y in zip(masses, left, right, strict=True)) / sum(masses)

    variances = [moments(masses, dls, dls) for masses, dls, _, _ in groups]
    average = sum(weight * variance for weight, variance in zip(weights, variances, strict=True))
    predicted = sum(
        candidate.subs(
            {A: weight, C: moments(masses, dls, dvs), s2: variance, mean: average, v: value, o: out}, simultaneous=True
        )
        for weight, variance, (masses, dls, dvs, value) in zip(weights, variances, groups, strict=True)
    )
    orders = [[sp.diff(part, eps, k).subs(eps, 0) / sp.factorial(k) for k in range(3)] for part in (moment, mass)]
    # moment = exact mass, order by order.
    yield Step("identical members merge without loss", orders[0][0], out * orders[1][0], by=sp.cancel)
    yield Step("no first order", orders[0][1], out * orders[1][1], by=sp.cancel)
    yield Step(
        "second order: groups of three and of two unequal keys, logits l + eps d, values v + eps u of mean zero",
        orders[0][2],
        out * orders[1][2] + predicted * orders[1][0],
        by=sp.cancel,
    )


RESULT = Derivation(
    statement="Merged keys that carry their group's mass err by sum_g A_g [Cov_g(v, l) + (s_g^2 - sbar^2)(v_g - o)/2].",
    source="docs/theory/reductions.md, merging",
    status="derived",
    claim=sp.Eq(term, A * (C + (s2 - mean) * (v - o) / 2)),
    arguments=(A, C, s2, mean, v, o),
    steps=_steps,
)
