"""Distance W2 of equiangular tokens to the best Dirac measure (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import N, first, g, inner, mean

distance = sp.Symbol("W2")
C, t = sp.symbols("C t", positive=True)


def _steps(candidate):
    length = sp.sqrt(inner(mean, mean))
    pole = mean / length
    offset = first - pole
    yield Step("the pole mean/|mean| is a unit vector", inner(pole, pole), sp.Integer(1))
    yield Step("mean of |theta_i - pole|^2, the same for all i", inner(offset, offset), candidate**2)
    yield Step(
        "at 1 - gamma = C/t^2: t W2 -> sqrt((N - 1) C/N)",
        sp.limit(t**2 * (candidate**2).subs(g, C / t**2), t, sp.oo),
        (N - 1) * C / N,
    )


_x = (N - 1) * g / N
RESULT = Derivation(
    statement="W2 on the unit sphere (chordal) of N equiangular tokens to the Dirac at their mean direction.",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(distance, sp.sqrt(2 * _x / (1 + sp.sqrt(1 - _x)))),
    arguments=(g, N),
    steps=_steps,
)
