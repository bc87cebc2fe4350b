"""The transition coefficient of doubly stochastic Gaussian attention (docs/theory/diffusion.md, sense iii)."""

import sympy as sp
from sympy.codegen.cfunctions import hypot

from meanfield.derivations.derivation import Derivation, Step

beta, variance = sp.symbols("beta lambda", positive=True)
coefficient = sp.Symbol("a")


def _steps(candidate):
    candidate = candidate.replace(hypot, lambda x, y: sp.sqrt(x**2 + y**2))
    a = sp.Symbol("a", positive=True)
    precision = (variance * sp.Matrix([[1, a], [a, 1]])).inv()
    condition = sp.simplify(-precision[0, 1])
    yield Step(
        "f(x) e^{beta x y} f(y) with both marginals N(0, lambda) is Gaussian with off-diagonal precision -beta",
        condition.subs(a, candidate),
        beta,
    )
    root = next(root for root in sp.solve(beta * variance * (1 - a**2) - a, a) if root.subs({beta: 1, variance: 1}) > 0)
    yield Step("the positive root of beta lambda (1 - a^2) = a", root, candidate)


RESULT = Derivation(
    statement="Sinkhorn attention between Gaussian tokens of variance lambda: E[y|x] = a x.",
    source="docs/theory/diffusion.md, sense iii; Sander et al. 2110.11773",
    status="derived",
    claim=sp.Eq(coefficient, 2 * beta * variance / (1 + hypot(1, 2 * beta * variance))),
    arguments=(beta, variance),
    steps=_steps,
)
