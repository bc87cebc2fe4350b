"""One discrete Post-LN layer on the mode ratio (docs/theory/dynamics.md, 2.2 A)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import (
    N,
    attended_first,
    attended_second,
    delta,
    first,
    inner,
    mean,
    second,
)

alpha = sp.Symbol("alpha", positive=True)
factor = sp.Symbol("factor")


def _steps(candidate):
    def ratio(left, right, centre):
        return inner(left - right, left - right) / (2 * N * inner(centre, centre))

    # Rows of A and, by symmetry, its columns sum to one: the mean is an eigenvector with eigenvalue 1.
    next_ratio = ratio(first + alpha * attended_first, second + alpha * attended_second, (1 + alpha) * mean)
    yield Step(
        "u of theta_i + alpha A_i; dividing all tokens by their common norm leaves u",
        next_ratio,
        candidate.subs(delta, CONTRACTION.claim.rhs) * ratio(first, second, mean),
    )


RESULT = Derivation(
    statement="theta <- (theta + alpha A)/|theta + alpha A| multiplies the mode ratio u of equiangular tokens exactly.",
    source="docs/theory/dynamics.md, 2.2 A",
    status="derived",
    claim=sp.Eq(factor, ((1 + alpha * delta) / (1 + alpha)) ** 2),
    arguments=(alpha, delta),
    steps=_steps,
)
