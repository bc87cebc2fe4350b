"""From replicate probes to prediction intervals: scatter of scenes, estimation, and a measured model error.

With y_r(N) the prediction (its logarithm, for ranks) from scene r = 1 .. R, N_0 the tokens of the probe, and m(N) the
model error, the value of a new scene lies, with probability `level`, within

    mean y +- t_{R-1} sqrt( Var_r y_r(N_0) + Var_r y_r(N)/R + m(N)^2 ).

Scenes scatter as they do at N_0, where this is measured: the scatter of y_r(N) is mostly the noise of extrapolation,
which the mean over scenes divides by sqrt(R). At N = N_0, m = 0 it is the textbook s sqrt(1 + 1/R).

    m(N) = share * step * |ln(N/N_0)|/ln(N_0/N_small)

step: how far the law fitted to the smaller probe alone misses the larger probe, mean over scenes, then rms over layers.
`SHARE` is how much of it is left in the prediction, which knows both probes: measured on the testbed by
experiments/rank_intervals.py, on scenes that the published coverage does not use. With a single scene there is no
scatter of scenes: the interval is for that scene itself, m(N) alone with the shares SINGLE_SHARE and, in quadrature,
own: how far the law misses the values it was fitted to (with scenes, their scatter is what counts at N_0).
Source: docs/theory/prediction.md. Exact for Gaussian y without m; the model error assumes that the law keeps missing
at the rate, per ln N, at which it was seen to miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from meanfield._checks import Array, count, finite, in_range, positive
from meanfield.exponent import share
from meanfield.extrapolation import one_probe_law
from meanfield.params import RankParams
from meanfield.ranks import spectrum_ranks

SHARE: Mapping[str, float] = MappingProxyType(
    {
        "attention_effective_rank": 0.33,
        "attention_effective_rank_energy": 0.89,
        "attention_stable_rank": 0.53,
        "attention_participation_ratio": 0.80,
        "entropy": 0.24,
    }
)
"""Share of the two-size miss that remains in the mean over scenes, by variable; measured as the module says."""
SINGLE_SHARE: Mapping[str, float] = MappingProxyType(
    {
        "attention_effective_rank": 0.56,
        "attention_effective_rank_energy": 0.77,
        "attention_stable_rank": 0.53,
        "attention_participation_ratio": 0.73,
        "entropy": 0.30,
    }
)
"""The same in the prediction of one scene from itself: nothing averages the noise of its own calibration."""
LARGEST_LOG = 700.0
"""Ends of intervals stay below the exponential of this, within float64; no rank reaches it."""
NO_LOGARITHM = "its logarithm is not finite; use log=False"


@dataclass(frozen=True, eq=False)
class Interval:
    """A predicted value, the standard error of prediction in its units, and the ends of the interval."""

    value: Array
    se: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Miss:
    """rms over layers of the known misses of the law, on the scale of the variable: logarithms, or nats."""

    own: float
    step: float


def prediction_interval(
    values: ArrayLike,
    *,
    at_probe: ArrayLike | None = None,
    model_error: ArrayLike = 0.0,
    level: float = 0.95,
    log: bool = True,
) -> Interval:
    """The interval of the module from predictions `values` (R, ...) of R >= 2 replicates.

    at_probe (R, ...) are their values at the probe's own N (default: `values`); model_error (...) is m, on the log
    scale when `log`. The value is the geometric mean with `log`, else the mean; the ends are in its units.
    ValueError for fewer than 2 replicates, a level outside (0, 1), or non-positive values with `log`.
    """
    level = share("level", level)
    y = finite("values", values)
    if y.ndim == 0 or y.shape[0] < 2:
        raise ValueError(f"{y.shape[0] if y.ndim else 0} replicates have no scatter; probe at least 2 scenes")
    at = y if at_probe is None else finite("at_probe", at_probe)
    if at.shape[:1] != y.shape[:1]:
        raise ValueError(f"at_probe has shape {at.shape} for {y.shape[0]} replicates; give the same replicates")
    if log:
        y, at = (np.log(positive("values", part, remedy=NO_LOGARITHM)) for part in (y, at))
    replicates = y.shape[0]
    error = in_range("model_error", model_error, 0.0, remedy="it is a standard deviation")
    total = np.sqrt(at.var(0, ddof=1) + y.var(0, ddof=1) / replicates + error**2)
    return _interval(y.mean(0), total, student_t.ppf(0.5 * (1.0 + level), replicates - 1), log)


def single_interval(value: ArrayLike, model_error: ArrayLike, *, layers: int, level: float, log: bool) -> Interval:
    """The interval of one probed scene itself: model error alone, known from the misses of `layers` layers.

    ValueError for a level outside (0, 1), a negative model error, or a value that is not positive with `log`.
    """
    value = np.log(positive("value", value, remedy=NO_LOGARITHM)) if log else finite("value", value)
    error = in_range("model_error", model_error, 0.0, remedy="it is a standard deviation")
    depth = count("layers", layers, least=1, remedy="give the number of layers")
    quantile = student_t.ppf(0.5 * (1.0 + share("level", level)), max(depth - 1, 1))
    return _interval(value, np.broadcast_to(error, value.shape), quantile, log)


def no_interval(value: ArrayLike) -> Interval:
    """The value with NaN for everything that is not known."""
    value = finite("value", value)
    unknown = np.full(value.shape, np.nan)
    return Interval(value, unknown, unknown, unknown)


def model_error(name: str, misses: Mapping[str, Miss], params: RankParams, tokens: Array) -> Array:
    """m(N) of a variable at N tokens, in the shape of `tokens`; 0 for variables without a known miss."""
    if name not in misses:
        return np.zeros(tokens.shape)
    small, large = params.probe_tokens
    left, own = (SHARE[name], 0.0) if params.replicates else (SINGLE_SHARE[name], misses[name].own)
    return np.hypot(own, left * misses[name].step * np.log(tokens / large) / np.log(large / small))


def known_misses(params: RankParams) -> Mapping[str, Miss]:
    """The misses of the attention ranks and the entropy, by variable; empty without two probes."""
    members = params.replicates or (params,)
    if len(params.probes) < 2:
        return MappingProxyType({})
    found = [_scene_misses(member) for member in members]
    misses = {
        name: Miss(*(float(np.sqrt(np.mean(np.mean(part, axis=0) ** 2))) for part in zip(*values, strict=True)))
        for name in found[0]
        for values in [[scene[name] for scene in found]]
    }
    return MappingProxyType(misses)


@lru_cache(maxsize=64)
def _scene_misses(params: RankParams) -> Mapping[str, tuple[Array, Array]]:
    """(own, step) of each variable for one scene, (layer,) each; kept, since they cost more than a prediction."""
    small, large = params.probes
    tokens = np.asarray(float(large.tokens))
    measured = {name: value.mean(1) for name, value in spectrum_ranks(large.values).items()}
    fitted = params.laws.ranks(tokens)
    carried: dict[str, list[float]] = {name: [] for name in measured}
    for layer in small.values:
        ranks = [one_probe_law(head, small.tokens).ranks(tokens) for head in layer]
        for name, row in carried.items():
            row.append(float(np.mean([head[name] for head in ranks])))
    out = {
        f"attention_{name}": (np.log(fitted[name].mean(1) / value), np.log(np.array(carried[name]) / value))
        for name, value in measured.items()
    }
    if params.small_entropy is not None:
        grown = (params.entropy - params.small_entropy).mean(1)
        out["entropy"] = (np.zeros_like(grown), grown - np.log(large.tokens / small.tokens))
    return MappingProxyType(out)


def _interval(centre: Array, total: Array, quantile: float, log: bool) -> Interval:
    low, high = centre - quantile * total, centre + quantile * total
    if not log:
        return Interval(centre, total, low, high)
    value, low, high = (np.exp(np.minimum(x, LARGEST_LOG)) for x in (centre, low, high))
    return Interval(value, value * total, low, high)
