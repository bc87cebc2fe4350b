"""The exponent of a decay in depth, its confidence interval, and whether a power law is reached at all.

The spread g = D/r^2 = g_0 (r_0/r)^p once token variance no longer changes: coherent values, p = 2, r = r_0 + a L;
random values, p = 2, r^2 = r_0^2 + a^2 L. The local slope -d ln g/d ln L is then the limit times (1 - r_0/r) and
(1 - r_0^2/r^2): it is within a tenth of its limit when the residual norm has grown tenfold. Two conditions follow:

    r_L/r_0 >= GROWTH           the norm has grown
    |e_late - e_early| <= DRIFT max(|e|, LEAST)    the slope is the same in both halves (in ln L) of the window.

Source: docs/theory/notes.md 2.1, 2.2 B and D. The conditions are necessary for the laws of 2.2; the thresholds are a
modelling choice (a tenth).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from meanfield._checks import Array, finite, in_range, scalar

GROWTH = 10.0
"""Least growth r_L/r_0 of the residual norm for a power law to be visible."""
DRIFT = 0.1
"""Largest change of the local slope across the window, relative to the exponent."""
LEAST = 0.1
"""Exponents below this are no decay."""


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """A fit of values ~ depth^-exponent over the last part of the layers; every field has the shape of one layer.

    exponent with its standard error and interval; curvature, the coefficient of (ln depth)^2, with curvature_p, the
    p-value of its being zero; drift, the slope of the window's later half minus its earlier half's; growth r_L/r_0;
    reached, whether a power law is.
    """

    exponent: Array
    se: Array
    low: Array
    high: Array
    curvature: Array
    curvature_p: Array
    drift: Array
    growth: Array
    reached: Array

    def sentence(self) -> str:
        """The verdict in words, with the numbers that decide."""
        if self.reached.size == 0:
            return "no power law: no values"
        growth, drift = (f"{float(np.median(x)):.3g}" for x in (self.growth, np.abs(self.drift)))
        if np.all(self.reached):
            return f"a power law is reached: r_L/r_0 = {growth}, slope drift {drift} across the window"
        missed = int((~self.reached).sum())
        where = "" if missed == self.reached.size else f" at {missed} of {self.reached.size} N"
        if np.isnan(self.exponent).all():
            return f"no power law is reached{where}: too few layers, or values that are not positive"
        return (
            f"no power law is reached{where}: r_L/r_0 = {growth} (the laws need >= {GROWTH:g}), "
            f"slope drift {drift} across the window (at most {DRIFT:g} of the exponent, which must be >= {LEAST:g})"
        )


def fit_power_law(values: ArrayLike, growth: ArrayLike, *, last: float = 0.5, level: float = 0.95) -> PowerLaw:
    """Least squares of ln values on ln depth over the last share of the layers, with interval and verdict.

    values (layers, ...) after layers 1, 2, ...; growth (...) is r_L/r_0, the growth of the residual norm. The interval
    is e -+ t_{n-2} se over the n layers of the window: residuals of a computed curve are curvature, not noise, and the
    interval widens with it. NaN, and not reached, below 4 layers or where a value is not positive.
    ValueError when `level` or `last` is outside (0, 1) or growth is negative.
    """
    y = finite("values", values)
    ratio = in_range("growth", growth, 0.0, remedy="r_L/r_0 is a ratio of norms")
    last, level = share("last", last), share("level", level)
    layers = y.shape[0] if y.ndim else 0
    if layers < 4:
        nan = np.full(y.shape[1:], np.nan)
        return PowerLaw(nan, nan, nan, nan, nan, nan, nan, ratio + 0.0 * nan, np.zeros(y.shape[1:], dtype=bool))
    first = min(int(np.floor(layers * (1.0 - last))), layers - 4)
    x = np.log(np.arange(first, layers) + 1.0)
    positive = np.all(y[first:] > 0.0, axis=0)
    log_y = np.log(np.where(positive, y[first:], 1.0)).reshape(x.size, -1)
    centred = x - x.mean()
    line = np.stack([np.ones_like(x), centred], -1)
    parabola = np.column_stack([line, centred**2])
    slope, se = _last_coefficient(line, log_y)
    curvature, curvature_se = _last_coefficient(parabola, log_y)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(curvature_se > 0.0, np.abs(curvature) / curvature_se, 0.0)
    late = centred >= 0.5 * (centred[0] + centred[-1])
    late[-2:], late[:2] = True, False
    drift = _slope(x[~late], log_y[~late]) - _slope(x[late], log_y[late])
    half = student_t.ppf(0.5 * (1.0 + level), x.size - 2) * se
    shape = y.shape[1:]
    fields = (-slope, se, -slope - half, -slope + half, curvature, 2.0 * student_t.sf(statistic, x.size - 3), drift)
    fields = [np.where(positive, field.reshape(shape), np.nan) for field in fields]
    steady = np.abs(fields[-1]) <= DRIFT * np.maximum(np.abs(fields[0]), LEAST)
    reached = positive & (ratio >= GROWTH) & steady & (np.abs(fields[0]) >= LEAST)
    return PowerLaw(*fields, growth=np.broadcast_to(ratio, shape), reached=np.asarray(reached))


def share(name: str, value: float) -> float:
    """A share or a level strictly between 0 and 1, or ValueError."""
    return scalar(name, value, 1e-6, 1.0 - 1e-6, remedy="give a share strictly between 0 and 1, such as 0.95")


def _last_coefficient(design: Array, values: Array) -> tuple[Array, Array]:
    """The last coefficient of an ordinary least squares fit and its standard error, for each column of values."""
    coefficients = np.linalg.lstsq(design, values, rcond=None)[0]
    rest = values - design @ coefficients
    variance = (rest**2).sum(0) / (design.shape[0] - design.shape[1])
    return coefficients[-1], np.sqrt(variance * np.linalg.inv(design.T @ design)[-1, -1])


def _slope(x: Array, values: Array) -> Array:
    centred = x - x.mean()
    return centred @ values / (centred @ centred)
