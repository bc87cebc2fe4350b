"""The weight of the kept keys next to a mean key (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

f, N, w, phi = sp.symbols("f N w phi", positive=True)
weight = sp.Symbol("lambda")


def _steps(candidate):
    mean_logit = sp.Symbol("l", real=True)
    mean_exp = sp.Symbol("E", positive=True)
    kept, fill = f * N * mean_exp, w * sp.exp(mean_logit)
    measured = candidate.subs(phi, sp.exp(mean_logit) / mean_exp)
    yield Step("softmax mass of f N keys next to one key of weight w at the mean logit", kept / (kept + fill), measured)
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
