"""Gaussian tokens without LayerNorm: Sigma' = V Sigma A' Sigma + transpose (docs/theory/dynamics.md, 1.7)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.gaussian_attention import RESULT as ATTENTION
from meanfield.derivations.gaussian_attention import h, variance

variance_0, gain, t = sp.symbols("v_0 gain t", real=True)


def _steps(candidate):
    size = 2
    V, logits, x, m = (sp.Matrix(size, size, sp.symbols(f"{n}:4", real=True)) for n in "VAxm")
    a, b, c = sp.symbols("a b c", real=True)
    sigma = sp.Matrix([[a, b], [b, c]])
    # Two tokens are the columns of x: x' = V (m + Sigma A' x), so a deviation grows by V Sigma A'.
    difference = x[:, 0] - x[:, 1]
    velocities = V * (m + sigma * logits * x)
    same_mean = velocities.subs({m[0, 1]: m[0, 0], m[1, 1]: m[1, 0]})
    rate = V * sigma * logits
    yield Step("deviations obey y' = V Sigma A' y", same_mean[:, 0] - same_mean[:, 1], rate * difference)
    # E[y y^T]' = rate Sigma + Sigma rate^T: the law of the title. Along a common eigenvector: v' = 2 gain v^2.
    law = rate * sigma + sigma * rate.T
    aligned = law.subs({V[1]: 0, V[2]: 0, logits[1]: 0, logits[2]: 0, b: 0})
    yield Step("diagonal case", aligned, sp.diag(2 * V[0] * logits[0] * a**2, 2 * V[3] * logits[3] * c**2))
    value, logit, query = sp.symbols("value logit query", real=True)
    velocity = value * ATTENTION.claim.rhs.subs(h, logit * query)
    yield Step(
        "the same in one dimension from the attention output",
        2 * sp.diff(velocity, query) * variance,
        2 * value * logit * variance**2,
    )
    yield Step("v' = 2 gain v^2", sp.diff(candidate, t), 2 * gain * candidate**2)
    yield Step("v(0) = v_0", candidate.subs(t, 0), variance_0)


RESULT = Derivation(
    statement="Variance of Gaussian tokens along a common eigenvector of V and A' = K^T Q, gain = product.",
    source="arXiv:2312.14820, arXiv:2501.18322; docs/theory/dynamics.md, 1.7",
    status="derived",
    claim=sp.Eq(variance, variance_0 / (1 - 2 * gain * variance_0 * t)),
    arguments=(variance_0, gain, t),
    steps=_steps,
)
