"""Attention to a random part of the keys, renormalised: first order, and the exact expectation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, gammaln, log_expit, logit

from meanfield._checks import Array, count, finite, in_range, scalar, token_count
from meanfield.derivations.control_variate import RESULT as CONTROL_VARIATE
from meanfield.derivations.subsample_first_order import RESULT as FIRST_ORDER
from meanfield.derivations.subsample_kept import RESULT as KEPT
from meanfield.reductions._checks import fraction_of_keys, gaussian_variance, square

LEAST_MASS = 1e-130
"""Products of two moves, each of the order of its weight, must stay above the least float64 number."""


def subsample_error(fraction: ArrayLike, weighted_spread: ArrayLike) -> Array:
    """Error of attention to a random share f of the keys, renormalised: ((1 - f)/f) Q.

    Leading order in 1/(f N_eff); over-estimates when f / sum A^2 < about 20, where `subset_moment` holds. A regular
    grid on an image errs less, because neighbouring values are correlated. ValueError when f is outside (0, 1] or
    Q < 0.
    """
    return np.asarray(FIRST_ORDER.function(fraction_of_keys(fraction), square("weighted_spread", weighted_spread)))


def control_variate_error(
    fraction: ArrayLike,
    weighted_spread: ArrayLike,
    value_spread: ArrayLike,
    value_variance: ArrayLike,
    tokens: ArrayLike,
) -> Array:
    """Error of o_S + (vbar - vbar_S): ((1 - f)/f) (Q - 2 V_A/N + sigma_v^2/N).

    The bracket is sum_j |A_ij (v_j - o) - (v_j - vbar)/N|^2: zero for uniform attention, (e^{s^2} - 1) sigma_v^2/N for
    Gaussian logits of variance s^2. Leading order in 1/(f N). ValueError as in `subsample_error`.
    """
    bracket = CONTROL_VARIATE.function(
        square("weighted_spread", weighted_spread),
        square("value_spread", value_spread),
        square("value_variance", value_variance),
        token_count(tokens),
    )
    return subsample_error(fraction, np.maximum(bracket, 0.0))


def gaussian_subsample_error(fraction: ArrayLike, tokens: ArrayLike, logit_variance: ArrayLike) -> Array:
    """First-order error for Gaussian logits and independent values, over sigma_v^2: (1 - f) e^{s^2} / (f N).

    The control variate replaces e^{s^2} by e^{s^2} - 1. Needs s^2 < ln(N)/2 (`meanfield.gaussian_logit_ranks`).
    """
    return subsample_error(fraction, np.exp(gaussian_variance(logit_variance)) / token_count(tokens))


def common_mode_share(logit_variance: ArrayLike) -> Array:
    """Share of the subsampling error that all queries have in common: e^{-s^2}, for independent isotropic queries.

    Errors of two queries at cosine c have covariance e^{s^2 c} of the variance e^{s^2}. The common part shifts the
    token cloud and leaves its spread. Dimensionless; first order in 1/(f N_eff), Gaussian keys.
    """
    return np.exp(-gaussian_variance(logit_variance))


def subset_moment(
    weights: Array,
    left: Array,
    right: Array,
    kept: int,
    *,
    power: int,
    fill: float = 0.0,
    left_offset: ArrayLike = 0.0,
    right_offset: ArrayLike = 0.0,
) -> float:
    """E[(a + sum_S u_j).(b + sum_S w_j) / (F + sum_S A_j)^power] over all subsets S of exactly M = `kept` keys.

    weights A (N,) >= 0; left u and right w (N, C); offsets a, b (C,) or a number; fill F >= 0; power n = 1 or 2. With
    1/Z^n = int t^{n-1} e^{-tZ} dt and the coefficient of z^M of a generating function, z = e^{rho + i theta},

        int t^{n-1} e^{-tF} (1/2 pi) int z^{-M} prod_j (1 + z e^{-t A_j})
            [sum_j p_j (1 - p_j) u_j.w_j + (a + sum p u).(b + sum p w)] dtheta dt / binom(N, M),

    p_j = z e^{-t A_j}/(1 + z e^{-t A_j}), rho(t) the saddle point sum_j p_j = M at theta = 0. Exact at any M and
    N_eff up to two trapezoidal rules, in ln t and theta: relative error below 1e-6 of the terms that are summed.
    ValueError when arrays do not fit, or the weights of M keys together may be below 1e-130.
    """
    weights, left, right = _moment_arrays(weights, left, right)
    kept = count("kept", kept, least=1, remedy="keep between one key and all of them")
    power = count("power", power, least=1, remedy="1 for a mean, 2 for a square")
    fill = scalar("fill", fill, 0.0, remedy="the mass of the fill is not negative")
    a, b = finite("left_offset", left_offset), finite("right_offset", right_offset)
    if power > 2 or kept > len(weights):
        raise ValueError(f"power={power} with kept={kept} of {len(weights)} keys; use power 1 or 2, at most all keys")
    least = fill + np.partition(weights, kept - 1)[:kept].sum()
    if least < LEAST_MASS:
        raise ValueError(f"some {kept} keys hold the mass {least:.1e}; above {LEAST_MASS:g} only: narrow the logits")
    if kept == len(weights):
        return float(((a + left.sum(0)) * (b + right.sum(0))).sum() / (weights.sum() + fill) ** power)
    log_times = np.arange(-np.log(weights.sum() + fill) - 16.0, -np.log(least) + 4.0, 0.4)
    exponents = np.exp(log_times)[:, None] * weights
    rho, chance = _saddle(exponents, kept)
    std = np.sqrt((chance * (1.0 - chance)).sum(1))
    # Odd numbers of angles: their sums alias |S| to |S| + angles, which a width of 6.5 deviations makes negligible.
    angles = 2 * np.minimum(len(weights) // 2 + 1, np.ceil(3.25 * std + 4.5)) + 1
    needed = np.minimum((angles - 1) / 2, np.ceil(7.5 / np.maximum(std, 1e-9) * angles / (2.0 * np.pi)))
    products, coefficient = (left * right).sum(1), np.zeros(len(log_times))
    for k in range(int(needed.max()) + 1):
        rows = needed >= k
        turn = 2j * np.pi * k / angles[rows]
        p = chance[rows]
        tilted = KEPT.function(p, -turn[:, None])
        inner = (tilted * (1.0 - tilted)) @ products + ((a + tilted @ left) * (b + tilted @ right)).sum(1)
        phase = np.exp(np.log1p(p * np.expm1(turn)[:, None]).sum(1) - kept * turn)
        coefficient[rows] += (1.0 if k == 0 else 2.0) * (phase * inner).real / angles[rows]
    subsets = gammaln(len(weights) + 1) - gammaln(kept + 1) - gammaln(len(weights) - kept + 1)
    log_sum = -log_expit(exponents - rho[:, None]).sum(1) - kept * rho - subsets
    survival = np.exp(power * log_times - np.exp(log_times) * fill + log_sum)
    return float(np.trapezoid(survival * coefficient, log_times))


def _saddle(exponents: Array, kept: int) -> tuple[Array, Array]:
    """rho (T,) with sum_j p_j = M to a tenth of the deviation of |S|, p_j = 1/(1 + e^{a_j - rho}), and p (T, N)."""
    low = logit(kept / exponents.shape[1]) + exponents.min(1)
    # At 40 above the M-th smallest exponent those M keys are kept to rounding; far above it M rho would cancel badly.
    high = np.partition(exponents, kept - 1, axis=1)[:, kept - 1] + 40.0
    while True:
        rho = (low + high) / 2.0
        p = expit(rho[:, None] - exponents)
        excess = p.sum(1) - kept
        near = np.abs(excess) < 0.1 * np.sqrt((p * (1.0 - p)).sum(1))
        if np.all(near | (high - low < 1e-3)):
            break
        low, high = np.where(excess < 0.0, rho, low), np.where(excess < 0.0, high, rho)
    return rho, p


def _moment_arrays(weights: Array, left: Array, right: Array) -> tuple[Array, Array, Array]:
    a = in_range("weights", weights, 0.0, remedy="attention weights are not negative")
    u, w = finite("left", left), finite("right", right)
    if a.ndim != 1 or u.ndim != 2 or w.shape != u.shape or len(u) != len(a):
        raise ValueError(f"weights {a.shape}, left {u.shape}, right {w.shape} do not fit; give (N,), (N, C), (N, C)")
    return a, u, w
