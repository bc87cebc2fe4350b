"""The best mixture of a subsampled output with the mean value (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.mixture_error import B2, mse
from meanfield.derivations.mixture_error import RESULT as MIXTURE_ERROR
from meanfield.derivations.mixture_error import weight as mixed

weight = sp.Symbol("lambda_star")


def _steps(candidate):
    error = MIXTURE_ERROR.claim.rhs
    yield Step("the derivative vanishes", sp.diff(error, mixed).subs(mixed, candidate), sp.Integer(0))
    yield Step("the curvature is positive", sp.diff(error, mixed, 2), 2 * (B2 + mse))
    yield Step("the least error", error.subs(mixed, candidate), candidate * mse)


RESULT = Derivation(
    statement="(1 - lambda)^2 B^2 + lambda^2 MSE is least at lambda*, where it is lambda* MSE.",
    source="docs/theory/reductions.md, shrinkage",
    status="derived",
    claim=sp.Eq(weight, B2 / (B2 + mse)),
    arguments=(B2, mse),
    steps=_steps,
)
