"""Attention without skip connection on a Gaussian cloud (docs/theory/dynamics.md, 1.8)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.gaussian_attention import RESULT as ATTENTION
from meanfield.derivations.gaussian_attention import h, variance

sigma, beta = sp.symbols("sigma beta", positive=True)
after = sp.Symbol("sigma_next")


def _steps(candidate):
    x = sp.Symbol("x", real=True)
    output = ATTENTION.claim.rhs.subs({h: beta * x, variance: sigma**2})
    slope = sp.diff(output, x)
    yield Step("the output is affine in x", sp.diff(slope, x), sp.Integer(0))
    yield Step("its standard deviation", slope * sigma, candidate)


RESULT = Derivation(
    statement="Standard deviation after x <- A x (V = I, logits beta x_i x_j) on infinitely many N(m, sigma^2) tokens.",
    source="docs/theory/dynamics.md, 1.8",
    status="derived",
    claim=sp.Eq(after, beta * sigma**3),
    arguments=(sigma, beta),
    steps=_steps,
)
