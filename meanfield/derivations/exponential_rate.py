"""Rate of collapse near gamma = 1 at bounded speed s (docs/theory/dynamics.md, 1.1 and 1.2)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import g
from meanfield.derivations.two_mode_contraction import RESULT as KAPPA
from meanfield.derivations.usa_contraction import RESULT as USA

rate = sp.Symbol("rate")


def _steps(candidate):
    for name, contraction in (("SA", KAPPA.claim.rhs), ("USA", USA.claim.rhs)):
        velocity = COSINE.claim.rhs.subs(kappa, contraction)
        yield Step(
            f"-g'/g for g -> 0, {name}",
            sp.limit(velocity / g, g, 0),
            candidate.subs(kappa, sp.limit(contraction, g, 0)),
        )
    yield Step("kappa -> 1 for SA at every beta and N", KAPPA.claim.rhs.subs(g, 0), sp.Integer(1))


RESULT = Derivation(
    statement="1 - gamma decays as exp(-int rate dt): rate 2/s with softmax (kappa = 1), 2 e^beta with USA.",
    source="arXiv:2312.10794; Theorem 4.1 of arXiv:2510.22026",
    status="proved",
    claim=sp.Eq(rate, 2 * kappa / s),
    arguments=(kappa, s),
    steps=_steps,
)
