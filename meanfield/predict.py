"""predict_rank and predict_spectrum: ranks of tokens and attention in depth L and number of tokens N, with intervals.

Attention ranks come from the finite-N law of `params` (sphere law, or a law from one or two probes), token ranks from
the three-mode recursion and the equiangular closed forms, intervals from replicates (`meanfield.uncertainty`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from meanfield._checks import Array, count, token_count
from meanfield.closed_forms import effective_count, equiangular_token_ranks
from meanfield.condensation import condensed
from meanfield.exponent import PowerLaw, fit_power_law, share
from meanfield.params import RankParams, preset
from meanfield.provenance import provenance
from meanfield.ranks import RANK_NAMES
from meanfield.recursion import rollout, sample_energies, spread
from meanfield.uncertainty import (
    Interval,
    known_misses,
    model_error,
    no_interval,
    prediction_interval,
    single_interval,
)

ONE = "1"
INTERVALS = {
    "replicates": "prediction interval for a new scene, from {count} probed scenes; model error: {model}",
    "one probe": "the probed scene itself: model error of {model}, no scatter between scenes",
    "none": "none: {why}",
}
DECAYING = (
    "spread g = 1 - mean cosine, the variance of directions about their mean; the Wasserstein distance to a point "
    "goes as sqrt(g), with half the exponent"
)


@dataclass(frozen=True, eq=False)
class _Variable:
    """Values (layer, ...) with their description; `log`: whether errors are relative; limits of possible values."""

    values: Array
    long_name: str
    units: str = ONE
    log: bool = True
    least: float = 1.0
    most: float | Array = np.inf


def predict_rank(L: int, N: ArrayLike, *, params: RankParams | str = "vggt-init", level: float = 0.95) -> xr.Dataset:
    """Ranks after each of L global-attention layers at N tokens (a number, or an array for a dimension `tokens`).

    Variables over (layer) or (layer, tokens), means over heads for attention, each X with X_se, X_low, X_high:
      attention_effective_rank, attention_effective_rank_energy, attention_stable_rank, attention_participation_ratio
      entropy (nats), condensed (share of heads with s^2 > ln(N)/2, where the sphere law over-estimates)
      token_effective_rank, token_effective_rank_energy, token_stable_rank, token_participation_ratio
      spread g = 1 - cosine, norm_growth r_l/r_0; and spread_reference, the O(1/L) law through the last layer's spread
    and over () or (tokens), of g over the last half of the layers: depth_exponent with _se, _low, _high (confidence
    interval of the slope; the O(1/L) reference is 1), depth_exponent_drift, depth_curvature_p, power_law (reached or
    not). Below 4 layers these are NaN and False.
    X_low, X_high is the `level` prediction interval for a new scene when params has replicates, the interval of the
    probed scene with one probe of two sizes, NaN else; attrs `interval` says which. X_se is its standard error.
    Attrs: method, params, interval, level, decaying_quantity, power_law (a sentence), uncalibrated (share of heads
    whose two probes no tail within `extrapolation.SLOPE_RANGE` connects), and where it comes from.
    N counts S = N/P frames of P tokens (params.tokens_per_frame); below P it is a part of one frame.
    L below the layers of params takes the first L; above, only when all its layers are alike.
    ValueError when N < 2 or not finite, L cannot be served, or level is outside (0, 1).
    """
    level, chosen, n = share("level", level), _resolve(params).first(L), _tokens_asked(N)
    if n.ndim > 1 or n.size == 0:
        raise ValueError(f"N has shape {n.shape}; give a number or a vector of numbers of tokens")
    dims = ("layer", "tokens")[: 1 + n.ndim]
    variables, intervals, kind = _with_intervals(chosen, n, level)
    data = {
        f"{name}{suffix}": (dims, values, {"long_name": text, "units": variable.units})
        for name, variable in variables.items()
        for suffix, values, text in _parts(intervals[name], variable, level)
    }
    g, depth = intervals["spread"].value, (np.arange(chosen.layers) + 1.0).reshape((-1,) + (1,) * n.ndim)
    text = "O(1/L) law through the spread of the last layer"
    data["spread_reference"] = (dims, g[-1] * chosen.layers / depth, {"long_name": text, "units": ONE})
    law = fit_power_law(g, intervals["norm_growth"].value[-1], level=level)
    data |= {name: (dims[1:], values, {"long_name": text, "units": ONE}) for name, values, text in _exponent(law)}
    coords = {"layer": ("layer", np.arange(chosen.layers), {"long_name": "global-attention layer", "units": ONE})}
    if n.ndim:
        coords["tokens"] = ("tokens", n, {"long_name": "number of tokens N", "units": ONE})
    dataset = xr.Dataset(data, coords)
    dataset.attrs = _attrs(chosen) | {
        "interval": kind,
        "level": level,
        "decaying_quantity": DECAYING,
        "power_law": law.sentence(),
        "depth_exponent_reference": 1.0,
        "uncalibrated": chosen.uncalibrated,
    }
    if not n.ndim:
        dataset.attrs["tokens"] = float(n)
    return dataset


def predict_spectrum(params: RankParams | str, N: float, *, k: int = 16) -> xr.Dataset:
    """The k largest singular values of every attention matrix at N tokens, with its norms, ranks and entropy.

    The schema of accel.measure_spectra: singular_value (layer, head, k) descending; frobenius, stable_rank,
    participation_ratio, effective_rank, effective_rank_energy, entropy over (layer, head); `_se` twins, here standard
    errors of prediction for a new scene from replicates (without model error), NaN without them; and
    singular_value_residual, which only a measurement has (NaN). The singular values are quantiles of the finite-N law
    (sphere) or carried from the probe; the ranks are those of the whole spectrum.
    ValueError when N < 2 or k is not within what N (and the probe) gives.
    """
    chosen, n = _resolve(params), _tokens_asked(N)
    k = count("k", k, least=1, remedy="give the number of singular values")
    if n.ndim:
        raise ValueError(f"N has shape {n.shape}; predict_spectrum takes one number of tokens")
    members = chosen.replicates or (chosen,)
    found = [_spectrum(member, n, k) for member in members]
    at = np.asarray(float(chosen.probe_tokens[-1])) if chosen.probes else n
    probed = [_spectrum(member, at, k) for member in chosen.replicates]
    names = {"singular_value": "singular values of the attention matrix, descending"}
    names |= {"frobenius": "Frobenius norm of the attention matrix", **RANK_NAMES}
    names |= {"entropy": "mean entropy of the rows"}
    dataset = xr.Dataset(coords={"head": np.arange(chosen.heads), "k": np.arange(k), "layer": np.arange(chosen.layers)})
    for name, long_name in names.items():
        values = np.stack([member[name] for member in found])
        if probed:
            interval = prediction_interval(values, at_probe=np.stack([member[name] for member in probed]), log=False)
        else:
            interval = no_interval(values[0])
        dims = ("layer", "head", "k")[: values.ndim - 1]
        units = "nat" if name == "entropy" else ONE
        dataset[name] = (dims, interval.value, {"long_name": long_name, "units": units})
        text = f"standard error of prediction of the {name} for a new scene (NaN: no replicates)"
        dataset[f"{name}_se"] = (dims, interval.se, {"long_name": text, "units": units})
    text = "|A v - s u|, known for measured singular values only"
    unknown = np.full(dataset["singular_value"].shape, np.nan)
    dataset["singular_value_residual"] = (("layer", "head", "k"), unknown, {"long_name": text, "units": ONE})
    for name, text in (("layer", "global-attention layer"), ("head", "attention head"),
                       ("k", "index of the singular value, from the largest")):  # fmt: skip
        dataset[name].attrs = {"long_name": text, "units": ONE}
    frames = float(n) / chosen.tokens_per_frame
    dataset.attrs = _attrs(chosen) | {
        "tokens": int(n) if n == np.round(n) else float(n),
        "frames": int(frames) if frames == round(frames) else frames,
        "probes": len(chosen.replicates),
        "model_dtype": "float64",
        "attention_forwards": 0.0,
    }
    return dataset


def _with_intervals(
    params: RankParams, n: Array, level: float
) -> tuple[dict[str, _Variable], dict[str, Interval], str]:
    """Every variable, its interval, and in words what kind of interval that is."""
    misses = known_misses(params)
    named = ", ".join(sorted(misses)) or "none"
    if params.replicates:
        members = [_variables(member, n) for member in params.replicates]
        probed = _at_probe(params) if params.probes else members
        variables = members[0]
        kind = INTERVALS["replicates"].format(count=len(members), model=named)

        def interval(name: str, variable: _Variable) -> Interval:
            at = np.stack([member[name].values for member in probed])
            values = np.stack([member[name].values for member in members])
            at = at.reshape(at.shape + (1,) * (values.ndim - at.ndim))
            error = model_error(name, misses, params, n)
            return prediction_interval(values, at_probe=at, model_error=error, level=level, log=variable.log)

    else:
        variables = _variables(params, n)
        why = "one probe of one size" if params.probes else "the parameters are given, not estimated"
        kind = INTERVALS["one probe"].format(model=named) if misses else INTERVALS["none"].format(why=why)

        def interval(name: str, variable: _Variable) -> Interval:
            if name not in misses:
                return no_interval(variable.values)
            error = model_error(name, misses, params, n)
            return single_interval(variable.values, error, layers=params.layers, level=level, log=variable.log)

    return variables, {name: interval(name, variable) for name, variable in variables.items()}, kind


def _parts(interval: Interval, variable: _Variable, level: float) -> list[tuple[str, Array, str]]:
    """The suffix, values and description of a variable and what belongs to it, ends within the possible values."""
    low, high = (np.clip(end, variable.least, variable.most) for end in (interval.low, interval.high))
    name = variable.long_name
    return [
        ("", interval.value, name),
        ("_se", interval.se, f"standard error of prediction: {name}"),
        ("_low", low, f"lower end of the {level:.0%} interval: {name}"),
        ("_high", high, f"upper end of the {level:.0%} interval: {name}"),
    ]


def _exponent(law: PowerLaw) -> list[tuple[str, Array, str]]:
    name = "exponent e of spread ~ depth^-e over the last half of the layers"
    return [
        ("depth_exponent", law.exponent, f"fitted {name}"),
        ("depth_exponent_se", law.se, f"standard error of the {name}"),
        ("depth_exponent_low", law.low, f"lower end of the confidence interval of the {name}"),
        ("depth_exponent_high", law.high, f"upper end of the confidence interval of the {name}"),
        ("depth_exponent_drift", law.drift, f"change across the window of the {name}"),
        ("depth_curvature_p", law.curvature_p, "p-value of no curvature in ln spread against ln depth"),
        ("power_law", law.reached, "whether a power law in depth is reached"),
    ]


@lru_cache(maxsize=16)
def _at_probe(params: RankParams) -> list[dict[str, _Variable]]:
    """Everything for each replicate at the N of the larger probe, where the scatter of scenes was measured; kept."""
    tokens = np.asarray(float(params.probe_tokens[-1]))
    return [_variables(member, tokens) for member in params.replicates]


def _variables(params: RankParams, n: Array) -> dict[str, _Variable]:
    """Everything that is predicted for one set of parameters, over (layer, *shape of n)."""
    return {**_attention(params, n), **_tokens(params, n)}


def _attention(params: RankParams, n: Array) -> dict[str, _Variable]:
    ranks = params.laws.ranks(n)
    out = {
        f"attention_{name}": _Variable(ranks[name].mean(1), f"{text} of attention, mean over heads", most=n)
        for name, text in RANK_NAMES.items()
    }
    entropy, text = _entropy(params, n).mean(1), "mean entropy of an attention row, mean over heads"
    out["entropy"] = _Variable(entropy, text, "nat", log=False, least=0.0, most=np.log(n))
    flagged = condensed(params.logit_variance.reshape(params.kappa.shape + (1,) * n.ndim), n).mean(1)
    text = "share of heads with logit variance above ln(N)/2"
    out["condensed"] = _Variable(flagged, text, log=False, least=0.0, most=1.0)
    return out


def _tokens(params: RankParams, n: Array) -> dict[str, _Variable]:
    per_frame = np.minimum(n, params.tokens_per_frame)
    column = (-1,) + (1,) * n.ndim
    dim = params.token_dim.reshape(column)
    start = sample_energies(params.start, n / per_frame, per_frame)
    if params.energies is None:
        energies = rollout(params.recursion, params.start, params.layers, n / per_frame, per_frame)[1:]
        count = effective_count(n, dim)
    else:
        energies = sample_energies(params.energies.reshape((*column, 3)), n / per_frame, per_frame)
        count = np.clip(dim, 2.0, n)
    g = np.clip(spread(energies, n), np.finfo(float).tiny, 1.0)
    ranks = equiangular_token_ranks(np.maximum(count, 2.0), g)
    out = {f"token_{name}": _Variable(ranks[name], f"{text} of the token matrix", most=n)
           for name, text in RANK_NAMES.items()}  # fmt: skip
    out["spread"] = _Variable(g, "spread of the tokens, 1 - mean pairwise cosine", least=0.0, most=1.0)
    growth = np.sqrt(energies.sum(-1) / start.sum(-1))
    out["norm_growth"] = _Variable(growth, "norm of the residual stream over that before the first layer", least=0.0)
    return out


def _entropy(params: RankParams, n: Array) -> Array:
    """Mean row entropy (layer, head, ...): ln N minus the sphere's deficit, or the probe's carried in ln N.

    It grows as ln N from one probe, and with two at the rate between them, within 0 and ln N.
    """
    shape = params.kappa.shape + (1,) * n.ndim
    if params.entropy is None:
        return np.maximum(np.log(n) - params.sphere_deficit.reshape(shape), 0.0)
    rate = np.ones(params.kappa.shape)
    if params.small_entropy is not None:
        small, large = params.probe_tokens
        rate = np.clip((params.entropy - params.small_entropy) / np.log(large / small), 0.0, 1.0)
    carried = params.entropy.reshape(shape) + rate.reshape(shape) * np.log(n / params.entropy_tokens)
    return np.clip(carried, 0.0, np.log(n))


def _spectrum(params: RankParams, n: Array, k: int) -> dict[str, Array]:
    ranks = params.laws.ranks(n)
    return {"singular_value": params.laws.singular_values(float(n), k), **ranks, "entropy": _entropy(params, n)}


def _resolve(params: RankParams | str) -> RankParams:
    if not isinstance(params, RankParams | str):
        raise ValueError(f"params is a {type(params).__name__}; give a RankParams or the name of a preset")
    return preset(params) if isinstance(params, str) else params


def _tokens_asked(tokens: ArrayLike) -> Array:
    try:
        return token_count(tokens, least=2.0)
    except (TypeError, OverflowError):
        raise ValueError(f"N={str(tokens)[:40]} is not a number of tokens; give finite numbers") from None


def _attrs(params: RankParams) -> dict[str, str | int | float]:
    return {"method": params.method, "params": params.name, **provenance()}
