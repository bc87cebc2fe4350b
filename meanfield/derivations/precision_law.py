"""Covariance of Gaussian tokens under Pre-LN (docs/theory/dynamics.md, 2.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.gaussian_attention import RESULT as ATTENTION
from meanfield.derivations.gaussian_attention import h, mean, variance

lambda_0, beta, integral = sp.symbols("lambda_0 beta I", positive=True)
eigenvalue = sp.Symbol("lambda_t")


def _steps(candidate):
    x, r = sp.symbols("x r", positive=True)
    # Directions theta = x/r, logits beta theta_i . theta_j: attention over x_j with h = beta x/r^2, divided by r.
    velocity = ATTENTION.claim.rhs.subs(h, beta * x / r**2) / r
    yield Step("m' = (1 + beta lambda/r^2) m/r", velocity.subs(x, mean), (1 + beta * variance / r**2) * mean / r)
    growth = 2 * sp.diff(velocity, x) * variance
    yield Step("lambda' = 2 beta lambda^2/r^3", growth, 2 * beta * variance**2 / r**3)
    # I = int_0^t r^{-3} dt is a clock: dI = dt/r^3.
    yield Step("d lambda/dI", sp.diff(candidate, integral), (growth * r**3).subs(variance, candidate))
    yield Step("start", candidate.subs(integral, 0), lambda_0)


RESULT = Derivation(
    statement="Sigma^{-1}(t) = Sigma_0^{-1} - 2 beta I under Pre-LN with the clock I = int r^{-3} dt.",
    source="docs/theory/dynamics.md, 2.3",
    status="derived",
    claim=sp.Eq(eigenvalue, lambda_0 / (1 - 2 * beta * lambda_0 * integral)),
    arguments=(lambda_0, beta, integral),
    steps=_steps,
)
