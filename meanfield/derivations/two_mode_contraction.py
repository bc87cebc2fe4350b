"""The mode ratio falls as u' = -2 kappa u/s with kappa = 1 - delta (docs/theory/dynamics.md, 2.1)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import N, beta, g, other
from meanfield.derivations.mode_ratio import RESULT as RATIO


def _steps(candidate):
    ratio = RATIO.claim.rhs
    cosine_velocity = COSINE.claim.rhs.subs(kappa, N * other)
    yield Step(
        "u' = du/dg g', g' = -gamma', is -2 kappa u/s",
        sp.diff(ratio, g) * -cosine_velocity,
        -2 * candidate * ratio / s,
    )
    yield Step("kappa = 1 - delta", candidate, 1 - CONTRACTION.claim.rhs)


RESULT = Derivation(
    statement="Contraction kappa of the mode ratio of equiangular tokens under softmax attention, u' = -2 kappa u/s.",
    source="docs/theory/dynamics.md, 2.1",
    status="derived",
    claim=sp.Eq(kappa, N * sp.exp(-beta * g) / (1 + (N - 1) * sp.exp(-beta * g))),
    arguments=(g, beta, N),
    steps=_steps,
)
