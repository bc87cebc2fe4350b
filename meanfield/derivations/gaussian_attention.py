"""Softmax attention over Gaussian keys is affine in the query (docs/theory/dynamics.md, 1.7)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

mean, h = sp.symbols("m h", real=True)
variance = sp.Symbol("v", positive=True)
output = sp.Symbol("output")


def _steps(candidate):
    y = sp.Symbol("y", real=True)
    weight = sp.exp(h * y - (y - mean) ** 2 / (2 * variance))
    normaliser = sp.integrate(weight, (y, -sp.oo, sp.oo))
    yield Step("the weighted mean of y ~ N(m, v) is d/dh ln E e^{h y}", sp.diff(normaliser, h) / normaliser, candidate)


RESULT = Derivation(
    statement="E[y e^{h y}]/E[e^{h y}] for Gaussian y: attention returns m + Sigma h for the logits h.y.",
    source="arXiv:2501.18322; docs/theory/dynamics.md, 1.7",
    status="derived",
    claim=sp.Eq(output, mean + variance * h),
    arguments=(mean, variance, h),
    steps=_steps,
)
