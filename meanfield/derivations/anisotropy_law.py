"""Growth of the ratio of two covariance eigenvalues (docs/theory/dynamics.md, 2.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.gaussian_mean import beta
from meanfield.derivations.normalised_covariance import RESULT as COVARIANCE
from meanfield.derivations.normalised_covariance import share

first, second = sp.symbols("lambda_1 lambda_2", positive=True)
rate = sp.Symbol("rate")


def _steps(candidate):
    def logarithmic(value):
        return COVARIANCE.claim.rhs.subs(share, value) / value

    yield Step("the common damping cancels in the ratio", logarithmic(first) - logarithmic(second), candidate)


RESULT = Derivation(
    statement="d ln(lambda_1/lambda_2)/d tau of two eigenvalues of S: anisotropy grows.",
    source="docs/theory/dynamics.md, 2.3",
    status="derived",
    claim=sp.Eq(rate, 2 * beta * (first - second)),
    arguments=(first, second, beta),
    steps=_steps,
)
