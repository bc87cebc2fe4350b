"""Initial velocity of the cosine when the attention output is normalised (docs/theory/dynamics.md, 1.2)."""

import sympy as sp

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_attention_norm import RESULT as NORM
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_cosine import kappa, s
from meanfield.derivations.equiangular_radial import N, beta, delta, g
from meanfield.derivations.two_mode_contraction import RESULT as KAPPA

slope = sp.Symbol("slope")


def _steps(candidate):
    length_squared = NORM.claim.rhs.subs(delta, CONTRACTION.claim.rhs).subs(g, 1)
    z = sp.exp(beta) + N - 1
    length = sp.sqrt(sp.exp(2 * beta) + N - 1) / z
    yield Step("|A|^2 at g = 1, Z = e^beta + N - 1", length_squared, length**2)
    yield Step(
        "gamma' at g = 1 with s |A| for s",
        COSINE.claim.rhs.subs({kappa: KAPPA.claim.rhs, s: s * length}).subs(g, 1),
        candidate,
    )


RESULT = Derivation(
    statement="gamma'(0) from gamma = 0 for Peri-LN (s = r_0) and nGPT (s = 1/alpha_0).",
    source="Theorem 4.1 of arXiv:2510.22026",
    status="proved",
    claim=sp.Eq(slope, 2 * sp.exp(-beta) / (s * sp.sqrt(1 + (N - 1) * sp.exp(-2 * beta)))),
    arguments=(beta, N, s),
    steps=_steps,
)
