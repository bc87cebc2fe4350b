"""Time at which the Gaussian covariance law ends (docs/theory/dynamics.md, 1.7)."""

import sympy as sp

from meanfield.derivations.covariance_law import RESULT as LAW
from meanfield.derivations.covariance_law import gain, t, variance_0
from meanfield.derivations.derivation import Derivation, Step

end = sp.Symbol("t_end")


def _steps(candidate):
    yield Step("1/v vanishes", (1 / LAW.claim.rhs).subs(t, candidate), sp.Integer(0))


RESULT = Derivation(
    statement="The variance v_0/(1 - 2 gain v_0 t) diverges at t_end when gain v_0 > 0 (V = I: 1/(2 beta lambda_max)).",
    source="docs/theory/dynamics.md, 1.7",
    status="derived",
    claim=sp.Eq(end, 1 / (2 * gain * variance_0)),
    arguments=(variance_0, gain),
    steps=_steps,
)
