"""Time at which the Gaussian covariance law ends (docs/theory/dynamics.md, 1.7)."""

import sympy as sp

from meanfield.derivations.covariance_law import RESULT as LAW
from meanfield.derivations.covariance_law import gain, t, variance_0
from meanfield.derivations.derivation import Derivation, Step

end = sp.Symbol("t_end")


def _steps(candidate):
    v, k, v_0 = sp.symbols("v k v_0", positive=True)
    yield Step(
        "v' = 2 gain v^2 carries v from v_0 to infinity in the integral of dv/(2 gain v^2)",
        sp.integrate(1 / (2 * k * v**2), (v, v_0, sp.oo)),
        candidate.subs({gain: k, variance_0: v_0}),
    )
    yield Step("where 1/v of the law vanishes", (1 / LAW.claim.rhs).subs(t, candidate), sp.Integer(0))


RESULT = Derivation(
    statement="The variance v_0/(1 - 2 gain v_0 t) diverges at t_end when gain v_0 > 0 (V = I: 1/(2 beta lambda_max)).",
    source="docs/theory/dynamics.md, 1.7",
    status="derived",
    claim=sp.Eq(end, 1 / (2 * gain * variance_0)),
    arguments=(variance_0, gain),
    steps=_steps,
)
