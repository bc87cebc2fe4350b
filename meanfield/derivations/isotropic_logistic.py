"""The spread of an isotropic Gaussian cloud under Pre-LN is logistic in tau (docs/theory/dynamics.md, 2.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.normalised_covariance import RESULT as COVARIANCE
from meanfield.derivations.normalised_covariance import along_mean, share, trace, trace_square

s_0, tau = sp.symbols("s_0 tau", positive=True)
s, d = sp.symbols("s d", positive=True)
spread = sp.Symbol("spread")


def _steps(candidate):
    isotropic = {share: s / d, trace: s, along_mean: s / d * (1 - s), trace_square: s**2 / d}
    law = d * COVARIANCE.claim.rhs.subs(isotropic)
    yield Step("beta drops out of the trace", law, -2 * s * (1 - s))
    yield Step("ds/d tau", sp.diff(candidate, tau), law.subs(s, candidate))
    yield Step("start", candidate.subs(tau, 0), s_0)


RESULT = Derivation(
    statement="s = tr S = 1 - gamma of an isotropic Gaussian cloud under Pre-LN, for every beta; tau = int dt/r.",
    source="docs/theory/dynamics.md, 2.3",
    status="derived",
    claim=sp.Eq(spread, s_0 / (s_0 + (1 - s_0) * sp.exp(2 * tau))),
    arguments=(s_0, tau),
    steps=_steps,
)
