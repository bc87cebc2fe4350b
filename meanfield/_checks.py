"""Argument checks shared by the closed forms: each error names the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

TINY = float(np.finfo(np.float64).tiny)
"""The lower end of the positive numbers of full precision."""
ATTRACTIVE = "attractive logits only: V = I, Q^T K = beta I with beta >= 0"
"""What a negative beta would need."""


def finite(name: str, value: ArrayLike) -> Array:
    """`value` as a finite float64 array, or ValueError."""
    if np.iscomplexobj(value):
        raise ValueError(f"{name} is complex; give its real part if the rest is rounding")
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


def scalar(name: str, value: ArrayLike, low: float = -np.inf, high: float = np.inf, *, remedy: str) -> float:
    """One number within [low, high] as a float, or ValueError; arrays of one entry count as arrays."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}={value!r} is not a number; {remedy}") from None
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}, where one number is meant; {remedy}")
    return float(in_range(name, array, low, high, remedy=remedy))


def count(name: str, value: ArrayLike, *, least: int = 0, remedy: str) -> int:
    """One whole number of at least `least` as an int, or ValueError."""
    number = scalar(name, value, float(least), remedy=remedy)
    if number != np.floor(number):
        raise ValueError(f"{name}={number:g} is not a whole number; {remedy}")
    return int(number)


def positive(name: str, value: ArrayLike, *, remedy: str) -> Array:
    """`value` as a float64 array of normal numbers above 0, or ValueError."""
    return in_range(name, value, TINY, remedy=remedy)


def attractive(beta: ArrayLike) -> Array:
    """`beta` as a float64 array, finite and not negative, or ValueError."""
    return in_range("beta", beta, 0.0, remedy=ATTRACTIVE)


def evaluated(name: str, law: Callable[..., ArrayLike], *arguments: ArrayLike, remedy: str) -> Array:
    """law(*arguments), or ValueError where it overflows or divides by zero, instead of a warning with inf or NaN."""
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            return np.asarray(law(*arguments))
    except (ArithmeticError, FloatingPointError):
        largest = max(float(np.max(np.abs(x), initial=0.0)) for x in arguments)
        raise ValueError(f"{name} leaves float64 for arguments up to {largest:g}; {remedy}") from None
