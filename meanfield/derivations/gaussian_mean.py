"""Velocity of the token mean under Pre-LN with Gaussian tokens (docs/theory/dynamics.md, 2.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.gaussian_attention import RESULT as ATTENTION
from meanfield.derivations.gaussian_attention import h, mean, variance

beta, r = sp.symbols("beta r", positive=True)
velocity = sp.Symbol("velocity")


def _steps(candidate):
    x = sp.Symbol("x", real=True)
    moved = ATTENTION.claim.rhs.subs(h, beta * x / r**2) / r
    yield Step("the output is affine in the query", sp.diff(moved, x, 2), sp.Integer(0))
    yield Step("so its mean is the output at the mean query", moved.subs(x, mean), candidate)


RESULT = Derivation(
    statement="m' along an eigenvector of the covariance with eigenvalue v, tokens N(m, Sigma) of norm close to r.",
    source="docs/theory/dynamics.md, 2.3",
    status="derived",
    claim=sp.Eq(velocity, (1 + beta * variance / r**2) * mean / r),
    arguments=(mean, variance, beta, r),
    steps=_steps,
)
