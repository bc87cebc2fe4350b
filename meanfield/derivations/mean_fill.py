"""The weight of the kept keys next to a mean key (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

f, N, w, phi = sp.symbols("f N w phi", positive=True)
weight = sp.Symbol("lambda")


def _steps(candidate):
    mean_logit = sp.Symbol("l", real=True)
    logits, values, filled = sp.symbols("l1:3", real=True), sp.symbols("v1:3", real=True), sp.Symbol("v", real=True)
    exps = [sp.exp(logit) for logit in logits]
    fill = w * sp.exp(mean_logit)
    moment = sum(e * value for e, value in zip(exps, values, strict=True))
    out = (moment + fill * filled) / (sum(exps) + fill)
    # Two kept keys of N, whose mean exponential is that of all keys: f = 2/N.
    share = candidate.subs({f: 2 / N, phi: 2 * sp.exp(mean_logit) / sum(exps)}, simultaneous=True)
    yield Step(
        "softmax over two kept keys and the mean key: lambda o_S + (1 - lambda) v",
        out,
        share * moment / sum(exps) + (1 - share) * filled,
        by=sp.cancel,
    )
    s = sp.Symbol("s", positive=True)
    x = sp.Symbol("x", real=True)
    density = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    gaussian = sp.integrate(sp.exp(s * x) * density, (x, -sp.oo, sp.oo))
    yield Step("Gaussian logits: phi = e^{-s^2/2}", sp.exp(0) / gaussian, sp.exp(-(s**2) / 2))


RESULT = Derivation(
    statement="Next to a mean key of weight w the f N kept keys carry the share lambda of the expected mass.",
    source="docs/theory/reductions.md, mean-fill",
    status="derived",
    claim=sp.Eq(weight, f * N / (f * N + w * phi)),
    arguments=(f, N, w, phi),
    steps=_steps,
)
