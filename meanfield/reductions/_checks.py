"""Checks of the statistics that the formulas of this package take."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, in_range, scalar

AT_LEAST_ONE = "a group holds at least one token"
MAX_LOGIT_VARIANCE = 700.0


def fraction_of_keys(fraction: ArrayLike) -> Array:
    f = in_range("fraction", fraction, 0.0, 1.0, remedy="give the kept share of keys, in (0, 1]")
    if np.any(f == 0.0):
        raise ValueError("fraction=0 keeps no key; give the kept share of keys, in (0, 1]")
    return f


def kept_count(fraction: float, total: int) -> int:
    """round(f N) of N keys, at least one."""
    f = scalar("fraction", fraction, 0.0, 1.0, remedy="give the kept share of keys, in (0, 1]")
    count = round(float(fraction_of_keys(f)) * total)
    if count == 0:
        raise ValueError(f"fraction={f:g} of {total} keeps nothing; give at least {1 / total:g}")
    return count


def mass_share(mass: ArrayLike) -> Array:
    return in_range("mass", mass, 0.0, 1.0, remedy="attention mass is a share of 1")


def square(name: str, value: ArrayLike) -> Array:
    return in_range(name, value, 0.0, remedy="it is a sum of squares: recompute the statistic")


def gaussian_variance(logit_variance: ArrayLike) -> Array:
    """A variance s^2 of Gaussian logits whose e^{s^2} is a float64 number."""
    remedy = "give the variance of the logits; above 700 one key holds all mass and e^{s^2} overflows"
    return in_range("logit_variance", logit_variance, 0.0, MAX_LOGIT_VARIANCE, remedy=remedy)
