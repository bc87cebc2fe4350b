"""Condensation of softmax rows: the regimes of the random-energy model, and the heavy-tailed bulk of singular values.

With logits of variance s^2 a row spreads over about N e^{-s^2} keys while s^2 < ln(N)/2 (dilute); between ln(N)/2 and
2 ln N its second moments are set by a few keys (condensing); beyond 2 ln N, the random-energy transition
T_c = 1/sqrt(2 ln N) with T = 1/s, a finite share of the row sits on single keys, sum A^2 -> 1 - T/T_c (frozen).

Heavy entries change the bulk of singular values. For a matrix of independent entries with squares x, the resolvents
h = 1/(1 + v sum_j x_j h_j) are random variables (cavity equation), not one number; T_N(v) = N E(1 - h). Compared at
equal theta = T_N/N with the free law, v = theta/((1 - theta)^2 N E x), this stretches v by a factor that is

    m(theta) = exp(c_1 theta + c_2 theta^2).

Source: docs/theory/finite_n.md; cavity equation: Bordenave, Caputo, Chafai, arXiv:0903.3528 and 0909.5485 (Levy
entries); random energies: Derrida 1981. The use of m for kernels (`meanfield.qk_norm`) is conjectured and measured.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

from meanfield._checks import Array, finite, in_range, token_count
from meanfield.derivations.condensation_threshold import RESULT as THRESHOLD
from meanfield.derivations.free_resolvent import RESULT as FREE_RESOLVENT
from meanfield.derivations.frozen_participation import RESULT as FROZEN_PARTICIPATION
from meanfield.row_statistics import LogitDensity, entry_moments

ITERATIONS = 14
LOG_T = np.arange(-28.0, 3.6, 0.5)
"""Grid of ln t for E f(1/(1 + S)) = int f^(t) E e^{-t S} dt."""
LOG_Y = np.arange(-50.0, 17.0, 0.5)
"""Grid on which ln E(1 - e^{-y x}) is tabulated; x has the scale N E x = 1."""
LOG_V = np.arange(-5.0, 7.0, 0.75)
"""Grid of ln(v N E x), from theta = .007 to nearly 1."""
FITTED = (0.02, 0.95)
"""Range of theta in which ln m is fitted."""


class Regime(StrEnum):
    """Where s^2 lies: below ln(N)/2, up to 2 ln N, or beyond."""

    DILUTE = "dilute"
    CONDENSING = "condensing"
    FROZEN = "frozen"


def regime(logit_variance: ArrayLike, tokens: ArrayLike) -> np.ndarray:
    """The `Regime` of rows of N Gaussian logits with variance s^2, an array of strings in the broadcast shape.

    Limit of large N; a sharp name for a smooth crossover. Bounded logits (spheres of small D) condense later than it
    says. ValueError on s^2 < 0 or N < 1.
    """
    s2 = in_range("logit_variance", logit_variance, 0.0, remedy="a variance is not negative")
    n = token_count(tokens)
    condensing = np.where(s2 < THRESHOLD.function(1.0, n), Regime.CONDENSING, Regime.FROZEN)
    return np.where(s2 < THRESHOLD.function(2.0, n), Regime.DILUTE, condensing)


def condensed(logit_variance: ArrayLike, tokens: ArrayLike) -> Array:
    """Whether s^2 > ln(N)/2: second moments are then set by a few largest weights (Gaussian logits, large N).

    ValueError when s^2 is not finite or N < 1.
    """
    return finite("logit_variance", logit_variance) > THRESHOLD.function(2.0, token_count(tokens))


def frozen_participation(logit_variance: ArrayLike, tokens: ArrayLike) -> Array:
    """E sum A^2 of a frozen row in the limit of many keys: max(1 - T/T_c, 0) = max(1 - sqrt(2 ln N)/s, 0).

    Slowly approached (corrections ln ln N/ln N); `row_statistics` is exact at finite N. ValueError as `regime`.
    """
    s2 = in_range("logit_variance", logit_variance, 1e-300, remedy="give s^2 > 0")
    return np.maximum(FROZEN_PARTICIPATION.function(s2, token_count(tokens)), 0.0)


def heavy_tail(density: LogitDensity, tokens: float) -> tuple[float, float]:
    """(c_1, c_2) of ln m(theta) = c_1 theta + c_2 theta^2 for N x N softmax matrices with independent logits.

    The entries are taken as independent with squares x = E[(A - 1/N)^2 | l]; the law of h is carried by its first three
    moments (two-point Gauss quadrature). Approximate: theta at given v comes out up to 7 per cent low in the frozen
    regime (rows sum to one, which independent entries forget), below 3 per cent in the dilute one. (0, 0) where all
    entries are alike. ValueError when N < 2 or not finite.
    """
    n = float(token_count(tokens, least=2.0))
    first, second = entry_moments(density, n)
    weight = density.weight
    square = np.maximum(second - 2.0 * first / n + 1.0 / n**2, 0.0)
    kept = weight * (square + 1e-3 * (weight @ square)) > 1e-13 * (weight @ square)
    square, weight = square[kept], weight[kept] / weight[kept].sum()
    mean = n * (weight @ square)
    theta = _cavity_theta(square / mean, weight, n)
    log_m = LOG_V + 2.0 * np.log1p(-theta) - np.log(theta)
    used = (theta > FITTED[0]) & (theta < FITTED[1])
    powers = np.stack([theta[used], theta[used] ** 2], axis=1)
    c1, c2 = np.linalg.lstsq(powers, log_m[used], rcond=None)[0]
    return float(c1), float(c2)


def _cavity_theta(square: Array, weight: Array, n: float) -> Array:
    """theta = E(1 - h) on LOG_V, for squares normalised to n E x = 1."""
    lost = CubicSpline(LOG_Y, np.log(-np.expm1(-np.exp(LOG_Y)[:, None] * square) @ weight))
    t = np.exp(LOG_T)
    density = (LOG_T[1] - LOG_T[0]) * t * np.exp(-t)
    v = np.exp(LOG_V)
    first = FREE_RESOLVENT.function(v)
    points, share = np.stack([first, first], axis=-1), np.full((v.size, 2), 0.5)
    for _ in range(ITERATIONS):
        log_y = LOG_T[:, None] + np.log(v[:, None] * points)[:, None, :]  # (v, t, 2)
        change = (np.exp(lost(np.clip(log_y, LOG_Y[0], LOG_Y[-1]))) @ share[:, :, None])[..., 0]
        laplace = density * np.exp(n * np.log1p(-np.minimum(change, 1.0 - 1e-15)))
        m1, m2, m3 = laplace.sum(-1), (laplace * t).sum(-1), (laplace * t**2).sum(-1) / 2.0
        # h -> 1/(1 + v h) swings about its fixed point with slope near -1: the geometric mean of two iterates hits it
        first = np.sqrt(first * m1)
        points, share = _two_points(first, m2 / m1**2, m3 / m1**3)
    return 1.0 - first


def _two_points(mean: Array, second: Array, third: Array) -> tuple[Array, Array]:
    """Nodes and weights (v, 2) of the Gauss rule with this mean and second and third moments in units of it."""
    variance = np.maximum(second - 1.0, 1e-12)
    total = (third - second) / variance
    product = (third - second**2) / variance
    root = np.sqrt(np.maximum(total**2 - 4.0 * product, 1e-12))
    low, high = np.maximum(0.5 * (total - root), 1e-6), 0.5 * (total + root)
    upper = (1.0 - low) / (high - low)
    return mean[:, None] * np.stack([low, high], -1), np.stack([1.0 - upper, upper], -1)
