"""Argument checks shared by the closed forms: each error names the value and the remedy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def finite(name: str, value: ArrayLike) -> Array:
    """`value` as a finite float64 array, or ValueError."""
    array = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        bad = array[~np.isfinite(array)].flat[0]
        raise ValueError(f"{name} contains {bad}; remove or replace the non-finite entries")
    return array


def in_range(name: str, value: ArrayLike, low: float, high: float = np.inf, *, remedy: str) -> Array:
    """`value` as a float64 array with low <= value <= high everywhere, or ValueError naming the first offender."""
    array = finite(name, value)
    bad = (array < low) | (array > high)
    if np.any(bad):
        raise ValueError(f"{name}={array[bad].flat[0]:g} is outside [{low:g}, {high:g}]; {remedy}")
    return array


def token_count(value: ArrayLike, *, least: float = 1.0) -> Array:
    """Numbers of tokens as float64, each finite and at least `least`, or ValueError."""
    return in_range("N", value, least, remedy="give the number of tokens, frames times tokens per frame")
