"""Radial velocity of equiangular tokens, and the geometry that their derivations share (docs/theory/dynamics.md)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step

g, beta, N = CONTRACTION.arguments
delta = sp.Symbol("delta")
radial = sp.Symbol("radial")

gamma = 1 - g
own = 1 / (1 + (N - 1) * sp.exp(-beta * g))
other = sp.exp(-beta * g) * own

# Vectors are written in theta_i, theta_j and the sum of the N - 2 other tokens, for symbolic N.
first, second = sp.Matrix([1, 0, 0]), sp.Matrix([0, 1, 0])
attended_first, attended_second = sp.Matrix([own, other, other]), sp.Matrix([other, own, other])
mean = sp.Matrix([1, 1, 1]) / N
_GRAM = sp.Matrix(
    [
        [1, gamma, (N - 2) * gamma],
        [gamma, 1, (N - 2) * gamma],
        [(N - 2) * gamma, (N - 2) * gamma, (N - 2) * (1 + (N - 3) * gamma)],
    ]
)


def inner(left: sp.Matrix, right: sp.Matrix) -> sp.Expr:
    """Scalar product of two combinations of the tokens."""
    return (left.T * _GRAM * right)[0]


def _steps(candidate):
    yield Step("A_i = delta theta_i + (1 - delta) mean", attended_first, _split(first))
    yield Step("|mean|^2 from the N^2 pairs", inner(mean, mean), 1 - (N - 1) * g / N)
    yield Step("theta_i . A_i", inner(first, attended_first), candidate.subs(delta, CONTRACTION.claim.rhs))


def _split(token):
    contraction = own - other
    return contraction * token + (1 - contraction) * mean


RESULT = Derivation(
    statement="The attention output of equiangular unit tokens has the component theta . A along its own token.",
    source="docs/theory/dynamics.md, 2.1; arXiv:2510.22026",
    status="derived",
    claim=sp.Eq(radial, 1 - (1 - delta) * (N - 1) * g / N),
    arguments=(g, delta, N),
    steps=_steps,
)
