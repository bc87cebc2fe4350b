"""Measurements on a few frames of a trained model, turned into the fields of `meanfield.params.RankParams`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, count, finite, in_range
from meanfield.closed_forms import equiangular_token_ranks
from meanfield.extrapolation import SIZE_RANGE
from meanfield.recursion import Recursion, fit_recursion, population_energies, spread
from meanfield.sphere import kappa_from_deficit

REQUIRED = ("singular_values", "frames", "tokens_per_frame", "head_dim", "entropy", "token_energies")
MEASURED = ("singular_values", "small_singular_values", "entropy", "small_entropy", "token_energies")
MEASURED += ("token_effective_rank",)
"""Entries that are measured, and are averaged over probes; the others say how."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Singular values of every attention matrix at one number of tokens: values (L, H, n) descending, all n of them."""

    tokens: int
    values: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", count("probe tokens", self.tokens, least=2, remedy="N of the probe"))
        values = in_range("probe values", self.values, 0.0, remedy="singular values are not negative")
        if values.ndim != 3 or not 8 <= values.shape[-1] <= self.tokens:
            raise ValueError(
                f"probe values have shape {values.shape} at N={self.tokens} tokens; "
                "give (layers, heads, n) with 8 <= n <= N"
            )
        values = np.sort(values, axis=-1)[..., ::-1]
        in_range("the two largest values of a head", values[..., :2], *SIZE_RANGE, remedy="rank one has no tail")
        object.__setattr__(self, "values", values)


def probe_fields(
    arrays: Mapping[str, Any], *, digits: int = 6, fitted: tuple[Recursion, float] | None = None
) -> dict[str, Any]:
    """The fields of RankParams from the arrays that `RankParams.from_probe` describes; `fitted` spares the fit."""
    missing = [key for key in REQUIRED if key not in arrays]
    if ("small_singular_values" in arrays) != ("small_frames" in arrays):
        missing.append("small_singular_values and small_frames together")
    if "small_entropy" in arrays and "small_frames" not in arrays:
        missing.append("small_frames, which small_entropy needs")
    if missing:
        raise ValueError(f"from_probe misses {missing}; see RankParams.from_probe for the arrays")
    frames, per_frame, dim = (
        count(key, arrays[key], least=1, remedy="see RankParams.from_probe")
        for key in ("frames", "tokens_per_frame", "head_dim")
    )
    tokens = frames * per_frame
    probes = [Probe(int(arrays.get("spectrum_tokens", tokens)), _rounded(arrays["singular_values"], digits))]
    if "small_frames" in arrays:
        small = int(arrays.get("small_spectrum_tokens", int(arrays["small_frames"]) * per_frame))
        probes.insert(0, Probe(small, _rounded(arrays["small_singular_values"], digits)))
    entropy = finite("entropy", arrays["entropy"])
    energies = finite("token_energies", arrays["token_energies"])
    layers, heads = probes[-1].values.shape[:2]
    if energies.shape != (layers + 1, 3):
        raise ValueError(f"token_energies have shape {energies.shape}; {layers} layers need {(layers + 1, 3)}")
    spreads = np.minimum(spread(energies[1:], tokens), 1.0)
    if "token_effective_rank" in arrays:
        token_dim = _token_dim(finite("token_effective_rank", arrays["token_effective_rank"]), spreads, tokens)
    else:
        token_dim = np.full(layers, float(arrays.get("channels", heads * dim)))
    rows = probes[-1].tokens
    deficit = np.log(rows) - in_range("entropy", entropy, 0.0, np.log(rows) + 1e-6, remedy="give nats, at most ln N")
    recursion, residual = fitted or fit_recursion(energies, frames, per_frame)
    return {
        "kappa": kappa_from_deficit(np.maximum(deficit, 0.0), dim),
        "head_dim": dim,
        "tokens_per_frame": per_frame,
        "recursion": recursion,
        "start": tuple(population_energies(energies[0], frames, per_frame)),
        "token_dim": token_dim,
        "energies": population_energies(energies[1:], frames, per_frame),
        "recursion_residual": residual,
        "probes": tuple(probes),
        "entropy": entropy,
        "entropy_tokens": rows,
        "small_entropy": arrays.get("small_entropy"),
    }


def mean_arrays(probes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The arrays of several probes taken alike, averaged. ValueError when they differ in anything not measured."""
    if not probes:
        raise ValueError("from_probes got no probe; give a list of the arrays that from_probe takes")
    out = dict(probes[0])
    for probe in probes[1:]:
        if set(probe) != set(out):
            raise ValueError(f"probes differ in their entries {sorted(set(probe) ^ set(out))}; measure all alike")
        for key in set(out) - set(MEASURED):
            if probe[key] != out[key]:
                raise ValueError(f"probes differ in {key}: {out[key]} and {probe[key]}; measure all alike")
    for key in set(out) & set(MEASURED):
        shapes = {np.shape(probe[key]) for probe in probes}
        if len(shapes) > 1:
            raise ValueError(f"probes differ in the shape of {key}: {sorted(shapes)}; measure all alike")
        out[key] = np.mean([np.asarray(probe[key], dtype=np.float64) for probe in probes], axis=0)
    return out


def _token_dim(measured: Array, spreads: Array, tokens: int) -> Array:
    """The dimension d at which `equiangular_token_ranks` gives the measured effective rank, by bisection on [1,
    1e6]."""
    if measured.shape != spreads.shape:
        raise ValueError(f"token_effective_rank has shape {measured.shape}; give one per layer, {spreads.shape}")
    low, high = np.full_like(measured, 2.0), np.full_like(measured, tokens)
    for _ in range(60):
        middle = np.sqrt(low * high)
        below = equiangular_token_ranks(middle, spreads)["effective_rank"] < measured
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.sqrt(low * high)


def _rounded(values: ArrayLike, digits: int) -> Array:
    array = finite("singular_values", values)
    return np.array([float(f"{x:.{digits}g}") for x in array.ravel()]).reshape(array.shape)
