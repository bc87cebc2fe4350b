"""Mean-fill: one mean key stands for the dropped keys, which shrinks the output towards the mean value."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, in_range, token_count
from meanfield.derivations.mean_fill import RESULT as MEAN_FILL
from meanfield.derivations.mixture_error import RESULT as MIXTURE_ERROR
from meanfield.derivations.shrinkage import RESULT as SHRINKAGE
from meanfield.reductions._checks import fraction_of_keys, square


def mean_fill_weight(
    fraction: ArrayLike, tokens: ArrayLike, mean_ratio: ArrayLike, *, count_weight: bool = True
) -> Array:
    """Weight lambda of the kept keys when one mean key stands for the dropped ones: M / (M + w phi).

    M = f N; w = N - M when the mean key carries the count it stands for (`count_weight`), w = 1 as in AVGGT;
    phi = exp(mean logit) / mean(exp logit), about e^{-s^2/2} (`mean_ratio`). Approximate: sampling noise of the kept
    mass ignored (`meanfield.reductions.theory.mean_fill` keeps it).
    """
    f, n = fraction_of_keys(fraction), token_count(tokens)
    phi = in_range("mean_ratio", mean_ratio, 0.0, 1.0 + 1e-9, remedy="Jensen bounds exp(mean l)/mean(exp l) by 1")
    fill = (1.0 - f) * n if count_weight else np.minimum(1.0, (1.0 - f) * n)
    return np.asarray(MEAN_FILL.function(f, n, fill, phi))


def mean_fill_error(weight: ArrayLike, mean_offset: ArrayLike, subsample_mse: ArrayLike) -> Array:
    """Error of lambda o_S + (1 - lambda) vbar: (1 - lambda)^2 B^2 + lambda^2 MSE_sub.

    `weight` from `mean_fill_weight` or `shrinkage_weight`. The covariance of o_S and the fill is ignored (order 1/N).
    """
    lam = in_range("weight", weight, 0.0, 1.0, remedy="lambda is the share of the kept keys")
    b2, mse = square("mean_offset", mean_offset), square("subsample_mse", subsample_mse)
    return np.asarray(MIXTURE_ERROR.function(lam, b2, mse))


def shrinkage_weight(mean_offset: ArrayLike, subsample_mse: ArrayLike) -> Array:
    """The weight of o_S that minimises `mean_fill_error`: lambda* = B^2 / (B^2 + MSE_sub); 1 when both vanish."""
    b2, mse = np.broadcast_arrays(square("mean_offset", mean_offset), square("subsample_mse", subsample_mse))
    safe = b2 + mse > 0.0
    return np.where(safe, SHRINKAGE.function(np.where(safe, b2, 1.0), mse), 1.0)


def shrinkage_error(mean_offset: ArrayLike, subsample_mse: ArrayLike) -> Array:
    """The least error of lambda o_S + (1 - lambda) vbar: B^2 MSE_sub / (B^2 + MSE_sub), at lambda*."""
    return shrinkage_weight(mean_offset, subsample_mse) * square("subsample_mse", subsample_mse)
