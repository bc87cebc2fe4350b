"""One discrete Pre-LN layer on the energy of a mode (docs/theory/dynamics.md, 2.2 A)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import N, attended_first, attended_second, first, inner, mean, second

step, eigenvalue = sp.symbols("step eigenvalue", positive=True)
factor = sp.Symbol("factor")


def _steps(candidate):
    # Tokens r theta become r (theta + step A) with step = alpha/r, or alpha/(r |A|) under Peri-LN.
    # Attention maps the mean to the mean of the outputs: (a + (N - 1) b) mean, by symmetry of A.
    weight = attended_first[0] + (N - 1) * attended_first[1]
    after = mean * (1 + step * weight)
    yield Step("mean, eigenvalue 1", inner(after, after), candidate.subs(eigenvalue, 1) * inner(mean, mean))
    difference = first - second
    after = difference + step * (attended_first - attended_second)
    yield Step(
        "difference of two tokens, eigenvalue delta",
        inner(after, after),
        candidate.subs(eigenvalue, CONTRACTION.claim.rhs) * inner(difference, difference),
    )


RESULT = Derivation(
    statement="x <- x + alpha A (V = I) multiplies the energy of a mode that attention scales by `eigenvalue` exactly.",
    source="docs/theory/dynamics.md, 2.2 A",
    status="derived",
    claim=sp.Eq(factor, (1 + step * eigenvalue) ** 2),
    arguments=(step, eigenvalue),
    steps=_steps,
)
