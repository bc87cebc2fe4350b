"""The best mixture of a subsampled output with the mean value (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

B2, mse = sp.symbols("B2 mse", positive=True)
weight = sp.Symbol("lambda")


def _steps(candidate):
    error = (1 - weight) ** 2 * B2 + weight**2 * mse
    yield Step("the derivative vanishes", sp.diff(error, weight).subs(weight, candidate), sp.Integer(0))
    yield Step("the curvature is positive", sp.diff(error, weight, 2), 2 * (B2 + mse))
    yield Step("the least error", error.subs(weight, candidate), candidate * mse)


RESULT = Derivation(
    statement="(1 - lambda)^2 B^2 + lambda^2 MSE is least at lambda*, where it is lambda* MSE.",
    source="docs/theory/reductions.md, shrinkage",
    status="derived",
    claim=sp.Eq(weight, B2 / (B2 + mse)),
    arguments=(B2, mse),
    steps=_steps,
)
