"""Errors of cheaper attention, as closed forms of statistics that a probe measures.

Per query i: weights A_ij over N keys, values v_j, output o = sum_j A_ij v_j. The statistics, all per query:

    weighted_spread   Q = sum_j A_ij^2 |v_j - o|^2          value_spread   V_A = sum_j A_ij |v_j - o|^2
    value_variance    sigma_v^2 = (1/N) sum_j |v_j - vbar|^2        mean_offset    B^2 = |vbar - o|^2
    own_mass          rho = sum of A_ij over the keys of the query's own frame

Every function broadcasts and returns the expected squared error |o_reduced - o|^2 in the units of |v|^2 unless its
docstring says otherwise. Divide by |o|^2 and take the root for the relative rms error.
Source: docs/theory/notes.md section 6, Monte-Carlo checked in tests/meanfield/test_reductions.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from meanfield._checks import Array, in_range, token_count

_STATISTIC = "it is a sum of squares: recompute the statistic"


def subsample_error(fraction: ArrayLike, weighted_spread: ArrayLike) -> Array:
    """Error of attention to a random share f of the keys, renormalised: ((1 - f)/f) Q.

    Leading order in 1/(f N); over-estimates when f / sum A^2 < about 20. A regular grid on an image errs less, because
    neighbouring values are correlated. ValueError when f is outside (0, 1] or Q < 0.
    """
    f = _fraction(fraction)
    return (1.0 - f) / f * _square("weighted_spread", weighted_spread)


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
    f, n = _fraction(fraction), token_count(tokens)
    bracket = _square("weighted_spread", weighted_spread) - 2.0 * _square("value_spread", value_spread) / n
    bracket = bracket + _square("value_variance", value_variance) / n
    return (1.0 - f) / f * np.maximum(bracket, 0.0)


def mean_fill_weight(
    fraction: ArrayLike, tokens: ArrayLike, mean_ratio: ArrayLike, *, count_weight: bool = True
) -> Array:
    """Weight lambda of the kept keys when one mean key stands for the dropped ones: M / (M + w phi).

    M = f N; w = N - M when the mean key carries the count it stands for (`count_weight`), w = 1 as published;
    phi = exp(mean logit) / mean(exp logit), about e^{-s^2/2} (`mean_ratio`). Approximate: sampling noise of M, w
    ignored.
    """
    f, n = _fraction(fraction), token_count(tokens)
    phi = in_range("mean_ratio", mean_ratio, 0.0, 1.0 + 1e-9, remedy="Jensen bounds exp(mean l)/mean(exp l) by 1")
    kept = f * n
    fill = (n - kept) if count_weight else np.minimum(1.0, n - kept)
    return kept / (kept + fill * phi)


def mean_fill_error(weight: ArrayLike, mean_offset: ArrayLike, subsample_mse: ArrayLike) -> Array:
    """Error of lambda o_S + (1 - lambda) vbar: (1 - lambda)^2 B^2 + lambda^2 MSE_sub.

    `weight` from `mean_fill_weight` or `shrinkage_weight`. The covariance of o_S and the fill is ignored (order 1/N).
    """
    lam = in_range("weight", weight, 0.0, 1.0, remedy="lambda is the share of the kept keys")
    return (1.0 - lam) ** 2 * _square("mean_offset", mean_offset) + lam**2 * _square("subsample_mse", subsample_mse)


def shrinkage_weight(mean_offset: ArrayLike, subsample_mse: ArrayLike) -> Array:
    """The weight of o_S that minimises `mean_fill_error`: lambda* = B^2 / (B^2 + MSE_sub); 1 when both vanish."""
    b2, mse = np.broadcast_arrays(_square("mean_offset", mean_offset), _square("subsample_mse", subsample_mse))
    total = b2 + mse
    return np.divide(b2, total, out=np.ones_like(total), where=total > 0.0)


def shrinkage_error(mean_offset: ArrayLike, subsample_mse: ArrayLike) -> Array:
    """The least error of lambda o_S + (1 - lambda) vbar: B^2 MSE_sub / (B^2 + MSE_sub), at lambda*."""
    return shrinkage_weight(mean_offset, subsample_mse) * _square("subsample_mse", subsample_mse)


def frame_error(own_mass: ArrayLike, rest_offset: ArrayLike) -> Array:
    """Error of attending to the own frame only: (1 - rho)^2 |o_rest - o_own|^2, an identity.

    `rest_offset` = |o_rest - o_own|^2, the outputs of the two parts of the keys, each renormalised.
    """
    return (1.0 - _mass(own_mass)) ** 2 * _square("rest_offset", rest_offset)


def kept_mass_bound(kept_mass: ArrayLike, value_spread: ArrayLike) -> Array:
    """Guaranteed bound ((1 - rho)/rho) V_A on the error of any kept set of keys, renormalised (loose: 10 to 1000
    times)."""
    rho = _mass(kept_mass)
    if np.any(rho == 0.0):
        raise ValueError("kept_mass=0 keeps nothing; the bound needs a positive kept mass")
    return (1.0 - rho) / rho * _square("value_spread", value_spread)


def top_mass(fraction: ArrayLike, logit_std: ArrayLike) -> Array:
    """Mass kept by the largest share f of Gaussian logits of standard deviation s: Phi(s + Phi^-1(f)),
    dimensionless."""
    s = in_range("logit_std", logit_std, 0.0, remedy="a standard deviation is not negative")
    return ndtr(s + ndtri(_fraction(fraction)))


def extrapolate_own_mass(own_mass: ArrayLike, frames: ArrayLike, to_frames: ArrayLike) -> Array:
    """Own-frame mass at another number of exchangeable frames: 1 / (1 + t (1 - rho)/rho), t = (S - 1)/(S_0 - 1).

    Dimensionless. Exact for the ratio of expected sums: the exponential sum over the other frames is proportional to
    their number. ValueError when `frames` < 2 (no other frame was seen).
    """
    rho, t = _mass(own_mass), frame_ratio(frames, to_frames)
    return np.divide(rho, rho + t * (1.0 - rho), out=np.zeros(np.broadcast(rho, t).shape), where=rho > 0.0)


def extrapolate_squares(
    own_mass: ArrayLike, own_squares: ArrayLike, rest_squares: ArrayLike, frames: ArrayLike, to_frames: ArrayLike
) -> Array:
    """A sum of A^2 times anything per key, at another number of exchangeable frames: (q_own + t q_rest)/(rho + t (1 -
    rho))^2.

    With q = sum A^2 it carries 1/N_eff (and |A|_F^2 = its mean times N), with q = sum A^2 |v - o|^2 the weighted spread
    (there o is taken as unchanged: approximate). t as in `extrapolate_own_mass`.
    """
    rho, t = _mass(own_mass), frame_ratio(frames, to_frames)
    own, rest = _square("own_squares", own_squares), _square("rest_squares", rest_squares)
    return (own + t * rest) / (rho + t * (1.0 - rho)) ** 2


def extrapolate_entropy(
    own_mass: ArrayLike, own_entropy: ArrayLike, rest_entropy: ArrayLike, frames: ArrayLike, to_frames: ArrayLike
) -> Array:
    """Row entropy at another number of exchangeable frames: (h_own + t h_rest)/Z + ln Z, Z = rho + t (1 - rho), in
    nats.

    h = -sum A ln A over the own frame and over the others, measured at `frames`. Exact as `extrapolate_own_mass`.
    """
    rho, t = _mass(own_mass), frame_ratio(frames, to_frames)
    z = rho + t * (1.0 - rho)
    own = in_range("own_entropy", own_entropy, 0.0, remedy="-A ln A is not negative: recompute it")
    rest = in_range("rest_entropy", rest_entropy, 0.0, remedy="-A ln A is not negative: recompute it")
    return (own + t * rest) / z + np.log(z)


def frame_ratio(frames: ArrayLike, to_frames: ArrayLike) -> Array:
    """Ratio (S - 1)/(S_0 - 1) of the numbers of other frames, dimensionless."""
    seen = in_range("frames", frames, 2.0, remedy="probe at least two frames: one frame has no others")
    return (in_range("to_frames", to_frames, 1.0, remedy="give at least one frame") - 1.0) / (seen - 1.0)


def _fraction(fraction: ArrayLike) -> Array:
    f = in_range("fraction", fraction, 0.0, 1.0, remedy="give the kept share of keys, in (0, 1]")
    if np.any(f == 0.0):
        raise ValueError("fraction=0 keeps no key; give the kept share of keys, in (0, 1]")
    return f


def _mass(mass: ArrayLike) -> Array:
    return in_range("mass", mass, 0.0, 1.0, remedy="attention mass is a share of 1")


def _square(name: str, value: ArrayLike) -> Array:
    return in_range(name, value, 0.0, remedy=_STATISTIC)
