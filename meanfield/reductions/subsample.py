"""Attention to a random part of the keys, renormalised: first order, and the exact expectation below its range."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, in_range, token_count
from meanfield.derivations.control_variate import RESULT as CONTROL_VARIATE
from meanfield.derivations.subsample_first_order import RESULT as FIRST_ORDER
from meanfield.derivations.subsample_kept import RESULT as KEPT
from meanfield.reductions._arguments import fraction_of_keys, square

_LOG_TIMES = np.arange(-14.0, 20.0, 0.4)


def subsample_error(fraction: ArrayLike, weighted_spread: ArrayLike) -> Array:
    """Error of attention to a random share f of the keys, renormalised: ((1 - f)/f) Q.

    Leading order in 1/(f N_eff); over-estimates when f / sum A^2 < about 20, where `thinned_moment` holds. A regular
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
    s2 = in_range("logit_variance", logit_variance, 0.0, remedy="a variance is not negative")
    return subsample_error(fraction, np.exp(s2) / token_count(tokens))


def common_mode_share(logit_variance: ArrayLike) -> Array:
    """Share of the subsampling error that all queries have in common: e^{-s^2}, for independent isotropic queries.

    Errors of two queries at cosine c have covariance e^{s^2 c} of the variance e^{s^2}. The common part shifts the
    token cloud and leaves its spread. Dimensionless; first order in 1/(f N_eff), Gaussian keys.
    """
    return np.exp(-in_range("logit_variance", logit_variance, 0.0, remedy="a variance is not negative"))


def thinned_moment(
    weights: Array,
    left: Array,
    right: Array,
    fraction: float,
    *,
    power: int,
    fill: float = 0.0,
    left_offset: ArrayLike = 0.0,
    right_offset: ArrayLike = 0.0,
) -> float:
    """E[(a + sum_S u_j).(b + sum_S w_j) / (F + sum_S A_j)^power] when each key is kept with probability f.

    weights A (N,); left u and right w (N, C); offsets a, b (C,); fill F >= 0; power 1 or 2. An empty S counts only if
    F > 0. From 1/Z^n = int t^{n-1} e^{-tZ} dt, with p_j(t) = f e^{-t A_j}/(1 - f + f e^{-t A_j}):

        int t^{n-1} e^{-tF} prod_j (1 - f + f e^{-t A_j}) [sum_j p_j (1 - p_j) u_j.w_j + (a + sum p u).(b + sum p w)] dt

    Exact for independent keeps, at any N_eff; for exactly M = f N kept keys up to a relative 1/M. The integral is a
    trapezoidal rule in ln t with 85 nodes (relative error below 1e-6).
    """
    if fraction == 1.0:
        return float((left_offset + left.sum(0)) @ (right_offset + right.sum(0)) / (weights.sum() + fill) ** power)
    times = np.exp(_LOG_TIMES)
    exponents = times[:, None] * weights
    kept = KEPT.function(fraction, exponents)
    survival = np.exp(np.log1p(fraction * np.expm1(-exponents)).sum(1) - times * fill)
    mean_left, mean_right = left_offset + kept @ left, right_offset + kept @ right
    inner = (kept * (1.0 - kept)) @ (left * right).sum(1) + (mean_left * mean_right).sum(1)
    return float(np.trapezoid(times**power * survival * inner, _LOG_TIMES))
