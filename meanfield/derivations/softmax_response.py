"""The linear response of a softmax average to its logits (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

A, change, mean, v, o = sp.symbols("A dl dlbar v o", real=True)
term = sp.Symbol("term")


def _steps(candidate):
    eps, shift = sp.symbols("epsilon c", real=True)
    # The sum over keys fixes its terms only together with these two symmetries.
    yield Step(
        "a common shift of all values", candidate.subs({v: v + shift, o: o + shift}, simultaneous=True), candidate
    )
    moved = candidate.subs({change: change + shift, mean: mean + shift}, simultaneous=True)
    yield Step("a change common to all logits", moved, candidate)
    logits, moves = sp.symbols("l1:4", real=True), sp.symbols("d1:4", real=True)
    values = sp.symbols("v1:4", real=True)
    exps = [sp.exp(logit + eps * move) for logit, move in zip(logits, moves, strict=True)]
    out = sum(e * value for e, value in zip(exps, values, strict=True)) / sum(exps)
    still = [e.subs(eps, 0) for e in exps]
    weights = [e / sum(still) for e in still]
    average = sum(w * move for w, move in zip(weights, moves, strict=True))
    predicted = sum(
        candidate.subs({A: w, change: move, mean: average, v: value, o: out.subs(eps, 0)}, simultaneous=True)
        for w, move, value in zip(weights, moves, values, strict=True)
    )
    yield Step("derivative along a change of the logits, three keys", sp.diff(out, eps).subs(eps, 0), predicted)
    keys, dq = sp.symbols("k1:4", real=True), sp.Symbol("dq", real=True)
    centre = sum(w * k for w, k in zip(weights, keys, strict=True))
    covariance = sum(
        w * (value - out.subs(eps, 0)) * (k - centre) for w, value, k in zip(weights, values, keys, strict=True)
    )
    along = {move: k * dq for move, k in zip(moves, keys, strict=True)}
    yield Step("a moved query: J = Cov_A(v, k)", predicted.subs(along, simultaneous=True), covariance * dq)


RESULT = Derivation(
    statement="Logits changed by dl move the output by sum_j A_j (dl_j - dlbar)(v_j - o); a query moved by dq, by "
    "Cov_A(v, k) dq.",
    source="docs/theory/reductions.md, merging",
    status="derived",
    claim=sp.Eq(term, A * (change - mean) * (v - o)),
    arguments=(A, change, mean, v, o),
    steps=_steps,
)
