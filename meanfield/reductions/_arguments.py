"""Checks of the statistics that the formulas of this package take."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, in_range


def fraction_of_keys(fraction: ArrayLike) -> Array:
    f = in_range("fraction", fraction, 0.0, 1.0, remedy="give the kept share of keys, in (0, 1]")
    if np.any(f == 0.0):
        raise ValueError("fraction=0 keeps no key; give the kept share of keys, in (0, 1]")
    return f


def mass_share(mass: ArrayLike) -> Array:
    return in_range("mass", mass, 0.0, 1.0, remedy="attention mass is a share of 1")


def square(name: str, value: ArrayLike) -> Array:
    return in_range(name, value, 0.0, remedy="it is a sum of squares: recompute the statistic")
