"""Law of the normalised covariance S = Sigma/r^2 under Pre-LN (docs/theory/dynamics.md, 2.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.gaussian_mean import RESULT as MEAN
from meanfield.derivations.gaussian_mean import beta, mean, r, variance

share, trace, along_mean, trace_square = sp.symbols("lambda tr_S mu_S_mu tr_S2", real=True)
velocity = sp.Symbol("velocity")


def _steps(candidate):
    means = sp.symbols("m1:3", real=True)
    values = sp.symbols("l1:3", positive=True)
    square = sum(m**2 for m in means) + sum(values)
    norm = sp.sqrt(square)
    mean_rates = [MEAN.claim.rhs.subs({mean: m, variance: v, r: norm}) for m, v in zip(means, values, strict=True)]
    value_rates = [2 * beta * v**2 / norm**3 for v in values]
    square_rate = sum(2 * m * rate for m, rate in zip(means, mean_rates, strict=True)) + sum(value_rates)
    left = norm * (value_rates[0] / square - values[0] * square_rate / square**2)
    here = {
        share: values[0] / square,
        trace: sum(values) / square,
        along_mean: sum(v * m**2 for m, v in zip(means, values, strict=True)) / square**2,
        trace_square: sum(v**2 for v in values) / square**2,
    }
    yield Step("chain rule on Sigma/r^2 with d tau = dt/r (two dimensions)", left, candidate.subs(here))


RESULT = Derivation(
    statement="d lambda/d tau of an eigenvalue of S = Sigma/r^2, mu = m/r.",
    source="docs/theory/dynamics.md, 2.3",
    status="derived",
    claim=sp.Eq(velocity, 2 * beta * share**2 - 2 * share * (1 - trace + beta * along_mean + beta * trace_square)),
    arguments=(share, trace, along_mean, trace_square, beta),
    steps=_steps,
)
