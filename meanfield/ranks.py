"""The rank measures: one definition each, used by theory and measurement alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from meanfield._checks import Array, finite

RANK_NAMES = {
    "effective_rank": "effective rank (Roy-Vetterli)",
    "effective_rank_energy": "effective rank of the energies",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
}


def stable_rank(singular_values: ArrayLike) -> Array:
    """Stable rank sum s^2 / max s^2 of spectra along the last axis.

    Shapes: (..., n) -> (...), dimensionless, in [1, n]. Exact. ValueError on empty, negative, non-finite or zero
    spectra.
    """
    s = _spectrum(singular_values)
    return (s**2).sum(-1)


def participation_ratio(singular_values: ArrayLike) -> Array:
    """Participation ratio (sum s^2)^2 / sum s^4 of spectra along the last axis.

    Shapes: (..., n) -> (...), dimensionless, in [1, n]. Exact. ValueError as in `stable_rank`.
    """
    energy = _spectrum(singular_values) ** 2
    return energy.sum(-1) ** 2 / (energy**2).sum(-1)


def effective_rank(singular_values: ArrayLike) -> Array:
    """Effective rank exp(-sum p ln p), p = s / sum s, of spectra along the last axis.

    Shapes: (..., n) -> (...), dimensionless, in [1, n]. Exact. ValueError as in `stable_rank`.
    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    return _exp_entropy(_spectrum(singular_values))


def effective_rank_energy(singular_values: ArrayLike) -> Array:
    """Effective rank of the energies, exp(-sum p ln p) with p = s^2 / sum s^2, along the last axis.

    Shapes: (..., n) -> (...), dimensionless, in [1, n], never above `effective_rank`. Exact. ValueError as there.
    """
    return _exp_entropy(_spectrum(singular_values) ** 2)


def attention_entropy(attention: ArrayLike) -> Array:
    """Mean entropy of the rows of an attention matrix, -(1/n) sum_ij A_ij ln A_ij.

    Shapes: (..., n, m) -> (...), nats, in [0, ln m]. ValueError when a row is negative or does not sum to 1 within
    1e-6.
    """
    weights = finite("attention", attention)
    if weights.ndim < 2 or weights.size == 0:
        raise ValueError(f"attention has shape {weights.shape}; give (..., queries, keys)")
    if weights.min() < 0.0:
        raise ValueError(f"attention contains {weights.min():g}; give the weights after the softmax")
    worst = np.abs(weights.sum(-1) - 1.0).max()
    if worst > 1e-6:
        raise ValueError(f"a row of attention sums to 1 only within {worst:g}; give the weights after the softmax")
    return entr(weights).sum(-1).mean(-1)


def token_ranks(tokens: ArrayLike, *, centred: bool = False) -> dict[str, Array]:
    """The four rank measures of token matrices, from their singular values.

    Shapes: (..., N, d) -> (...) each; `centred` removes the mean token first. Dense SVD: O(N d min(N, d)). Exact.
    ValueError when the (centred) matrix is zero or not finite.
    """
    x = finite("tokens", tokens)
    if x.ndim < 2:
        raise ValueError(f"tokens have shape {x.shape}; give (..., tokens, channels)")
    if centred:
        x = x - x.mean(-2, keepdims=True)
    return spectrum_ranks(np.linalg.svd(x, compute_uv=False))


def spectrum_ranks(singular_values: ArrayLike) -> dict[str, Array]:
    """All rank measures of spectra along the last axis, keyed by the names of their functions."""
    measures = (effective_rank, effective_rank_energy, stable_rank, participation_ratio)
    return {measure.__name__: measure(singular_values) for measure in measures}


def _spectrum(singular_values: ArrayLike) -> Array:
    """Checked spectra, divided by their largest value."""
    s = finite("singular_values", singular_values)
    if s.ndim == 0 or s.shape[-1] == 0:
        raise ValueError(f"singular_values has shape {s.shape}; the last axis must hold at least one value")
    if s.size and s.min() < 0.0:
        raise ValueError(f"singular_values contains {s.min():g}; singular values are not negative")
    top = s.max(-1, keepdims=True)
    if np.any(top == 0.0):
        raise ValueError("a spectrum is zero throughout: its rank is undefined; drop it before taking ranks")
    return s / top


def _exp_entropy(weights: Array) -> Array:
    return np.exp(entr(weights / weights.sum(-1, keepdims=True)).sum(-1))
