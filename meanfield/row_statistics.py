"""Exact finite-N statistics of one softmax row, for logits that are independent given the query.

A row holds N weights A_j = e^{l_j}/Z, Z = sum e^{l_j}, with l_1 .. l_N independent from one density. Since
1/Z^p = int_0^inf t^{p-1} e^{-tZ} dt / (p - 1)!, every moment is one integral over phi(t) = E exp(-t e^l):

    E[A_j^p | l_j = l] = e^{pl} int t^{p-1} exp(-t e^l) phi(t)^{N-1} dt / (p - 1)!
    E ln Z             = int (e^{-t} - phi(t)^N) dt / t
    E sum_j A_j l_j    = N int E[l exp(l - t e^l)] phi(t)^{N-1} dt

They hold at every N >= 2, condensed rows included. The integrals run over ln t by the trapezoidal rule, which
converges exponentially for these integrands (error about exp(-pi^2/STEP)).
Source: docs/theory/finite_n.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from meanfield._checks import Array, finite, in_range, token_count
from meanfield.derivations.angle_density import RESULT as ANGLE_DENSITY
from meanfield.derivations.log_partition import RESULT as LOG_PARTITION
from meanfield.derivations.reciprocal_moment import RESULT as RECIPROCAL_MOMENT

STEP = 0.25
"""Spacing in ln t."""
LOG_ZERO = -37.0
"""Integrands below e^-37 of their scale are dropped."""
LARGEST_LOG = 700.0
"""e^700 is near the end of float64, and exp(-e^700) = 0."""


@dataclass(frozen=True, eq=False)
class LogitDensity:
    """A density of logits as a quadrature rule: `values` (m,) with `log_weight` (m,), whose exponentials sum to one.

    ValueError on non-finite or unequal vectors, or weights that do not sum to one within 1e-6.
    """

    values: Array
    log_weight: Array

    def __post_init__(self) -> None:
        values, log_weight = finite("logit values", self.values), np.asarray(self.log_weight, dtype=np.float64)
        if values.ndim != 1 or values.shape != log_weight.shape or values.size < 2:
            raise ValueError(
                f"values {values.shape} and log_weight {log_weight.shape} must be equal vectors, at least 2"
            )
        total = logsumexp(log_weight)
        if not abs(total) < 1e-6:
            raise ValueError(f"the weights sum to {np.exp(total):g}; normalise them to one")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "log_weight", log_weight - total)

    @property
    def weight(self) -> Array:
        """exp(log_weight), (m,)."""
        return np.exp(self.log_weight)


def gaussian_logits(variance: float) -> LogitDensity:
    """Logits N(0, s^2), the random-energy model; quadrature exact to rounding for every N below e^40.

    ValueError when the variance is not in (0, 1e4].
    """
    scale = float(np.sqrt(in_range("variance", variance, 1e-12, 1e4, remedy="give s^2 > 0, the variance of a row")))
    step = min(0.1, 0.5 / scale)
    z = np.arange(-9.0, min(2.0 * scale, 12.0) + 9.0, step)
    return LogitDensity(scale * z, -0.5 * z**2 - logsumexp(-0.5 * z**2))


def sphere_logits(kappa: float, dim: int, nodes: int = 300) -> LogitDensity:
    """Logits kappa cos of a uniform direction on S^{dim-1}: the angle has density sin^{dim-2}; Gauss-Legendre in it."""
    in_range("kappa", kappa, 0.0, 1e5, remedy="kappa is the largest logit")
    x, weight = _gauss_legendre(nodes)
    angle = 0.5 * np.pi * (x + 1.0)
    return LogitDensity(kappa * np.cos(angle), np.log(0.5 * np.pi * weight) + ANGLE_DENSITY.function(angle, dim))


@lru_cache(maxsize=256)
def _gauss_legendre(nodes: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(nodes)


def entry_moments(density: LogitDensity, tokens: float, powers: tuple[int, ...] = (1, 2)) -> Array:
    """E[A_j^p | l_j = l] at the nodes of the density, for each p of `powers`: (len(powers), m).

    The first is the Hoeffding projection of an entry on its own logit, f_N(l); it saturates at 1 where e^l > Z.
    ValueError when N < 2 or not finite.
    """
    n = float(token_count(tokens, least=2.0))
    _, log_phi, argument = _integrand(density, n)
    tail = ((n - 1.0) * log_phi)[:, None]
    return np.stack([STEP * np.exp(RECIPROCAL_MOMENT.function(p, argument) + tail).sum(0) for p in powers])


def row_statistics(density: LogitDensity, tokens: ArrayLike) -> dict[str, Array]:
    """Exact expectations over rows of N keys, each in the shape of `tokens`.

    log_partition   E ln Z
    entropy         E H = E ln Z - E sum A l, nats
    participation   E sum A^2, so that E |A|_F^2 = N times it; its inverse is the number of keys that a row uses
    ValueError when N < 2 or not finite.
    """
    n = token_count(tokens, least=2.0)
    columns = np.array([_one_row(density, float(value)) for value in n.ravel()]).reshape(-1, 3)
    names = ("log_partition", "entropy", "participation")
    return {name: columns[:, i].reshape(n.shape) for i, name in enumerate(names)}


def _one_row(density: LogitDensity, n: float) -> tuple[float, float, float]:
    log_t, log_phi, argument = _integrand(density, n)
    beyond = np.arange(log_t[-1] + STEP, 5.0, STEP)
    difference = LOG_PARTITION.function(np.exp(np.minimum(log_t, 7.0)), n, log_phi)
    log_partition = STEP * (difference.sum() + np.exp(-np.exp(beyond)).sum())
    first = np.exp(RECIPROCAL_MOMENT.function(1.0, argument)) @ (density.weight * density.values)
    second = np.exp(RECIPROCAL_MOMENT.function(2.0, argument)) @ density.weight
    tail = np.exp((n - 1.0) * log_phi)
    mean_logit = n * STEP * (first * tail).sum()
    return log_partition, log_partition - mean_logit, n * STEP * (second * tail).sum()


def _integrand(density: LogitDensity, n: float) -> tuple[Array, Array, Array]:
    """ln t (g,), ln phi (g,) and ln t + l (g, m), at most LARGEST_LOG, where phi^{N-1} and t contribute."""
    start = min(LOG_ZERO, LOG_ZERO - density.values.max() - np.log(n))
    log_t = np.arange(start, 6.0 - density.values.min(), STEP)
    argument = np.minimum(log_t[:, None] + density.values, LARGEST_LOG)
    decay = np.exp(argument)
    lost = -np.expm1(-decay) @ density.weight
    with np.errstate(divide="ignore", invalid="ignore"):
        log_phi = np.where(lost < 0.5, np.log1p(-lost), 0.0)
    late = lost >= 0.5
    log_phi[late] = logsumexp(density.log_weight - decay[late], axis=1)
    keep = (n - 1.0) * log_phi > 20.0 * LOG_ZERO
    return log_t[keep], log_phi[keep], argument[keep]
