"""Depth at which the squared norm reaches y with random value maps (docs/theory/dynamics.md, 2.2 D)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.random_v import RESULT as GROWTH
from meanfield.derivations.random_v import coherence, eigenvalue, step

y, y_0, D, alpha = sp.symbols("y y_0 D alpha", positive=True)
depth = sp.Symbol("depth")


def _steps(candidate):
    def per_layer(mode):
        return GROWTH.claim.rhs.subs({coherence: 0, eigenvalue: mode, step: alpha / sp.sqrt(y)}) - 1

    # Flat attention: eigenvalue 1 on the mean, whose energy is y - D, and 0 on the differences.
    growth = (y - D) * per_layer(1) + D * per_layer(0)
    yield Step("dL/dy = 1/(growth of y in one layer)", sp.diff(candidate, y), 1 / growth)
    yield Step("L = 0 at y_0", candidate.subs(y, y_0), sp.Integer(0))
    yield Step("1 - gamma = D/y ~ D/(alpha^2 L)", sp.limit(candidate * alpha**2 / y, y, sp.oo), sp.Integer(1))


RESULT = Derivation(
    statement="Layers until r^2 = y under Pre-LN, random V, flat attention, small alpha, on average; D = g r^2 stays.",
    source="docs/theory/dynamics.md, 2.2 D",
    status="derived",
    claim=sp.Eq(depth, (y - y_0 + D * sp.log((y - D) / (y_0 - D))) / alpha**2),
    arguments=(y, y_0, D, alpha),
    steps=_steps,
)
