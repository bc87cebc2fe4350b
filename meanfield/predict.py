"""predict_rank and predict_spectrum: ranks of tokens and attention in depth L and number of tokens N.

Attention ranks come from the finite-N law of `params` (sphere law, or a law from one or two probes), token ranks from
the three-mode recursion and the equiangular closed forms.
"""

from __future__ import annotations

from importlib import metadata

import numpy as np
import scipy
import xarray as xr
from numpy.typing import ArrayLike

from meanfield._checks import Array, token_count
from meanfield.closed_forms import effective_count, equiangular_token_ranks
from meanfield.finite_n import condensed
from meanfield.params import RankParams, preset
from meanfield.recursion import depth_exponent, rollout, sample_energies, spread
from meanfield.sphere import entropy_deficit, logit_variance

ONE = "1"
RANK_NAMES = {
    "effective_rank": "effective rank (Roy-Vetterli)",
    "effective_rank_energy": "effective rank of the energies",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
}


def predict_rank(L: int, N: ArrayLike, *, params: RankParams | str = "vggt-init") -> xr.Dataset:
    """Ranks after each of L global-attention layers at N tokens (a number, or an array for a dimension `tokens`).

    Variables over (layer) or (layer, tokens), means over heads for attention:
      attention_effective_rank, attention_effective_rank_energy, attention_stable_rank, attention_participation_ratio
      entropy (nats), condensed (share of heads with s^2 > ln(N)/2, where the sphere law over-estimates)
      token_effective_rank, token_effective_rank_energy, token_stable_rank, token_participation_ratio, spread g = 1 -
      cosine spread_reference: the O(1/L) law through the last layer's spread
    and over () or (tokens): depth_exponent with depth_exponent_se (fit of g over the last half of the layers; the
    O(1/L) reference is 1; NaN below 3 layers). Attrs: method, params, versions.
    N counts S = N/P frames of P tokens (params.tokens_per_frame); below P it is a part of one frame.
    L below the layers of params takes the first L; above, only when all its layers are alike.
    ValueError when N < 2 or not finite, or L cannot be served.
    """
    chosen = _resolve(params).first(L)
    n = token_count(N, least=2.0)
    if n.ndim > 1:
        raise ValueError(f"N has shape {n.shape}; give a number or a vector of numbers of tokens")
    dims = ("layer", "tokens")[: 1 + n.ndim]
    values = {**_attention(chosen, n), **_tokens(chosen, n)}
    dataset = xr.Dataset(coords={"layer": np.arange(L), **({"tokens": n} if n.ndim else {})})
    for name, (array, long_name, units) in values.items():
        dataset[name] = (dims if array.ndim == len(dims) else dims[1:], array, {"long_name": long_name, "units": units})
    dataset["layer"].attrs = {"long_name": "global-attention layer", "units": ONE}
    if n.ndim:
        dataset["tokens"].attrs = {"long_name": "number of tokens N", "units": ONE}
    dataset.attrs = _attrs(chosen) | ({} if n.ndim else {"tokens": float(n)})
    dataset.attrs["depth_exponent_reference"] = 1.0
    return dataset


def predict_spectrum(params: RankParams | str, N: float, *, k: int = 16) -> xr.Dataset:
    """The k largest singular values of every attention matrix at N tokens, with its norms, ranks and entropy.

    The schema of accel.measure_spectra: singular_value (layer, head, k) descending; frobenius, stable_rank,
    participation_ratio, effective_rank, effective_rank_energy, entropy and condensed over (layer, head). The singular
    values are quantiles of the finite-N law (sphere) or carried from the probe; the ranks are those of the whole
    spectrum. ValueError when N < 2 or k is not within what N (and the probe) gives.
    """
    chosen = _resolve(params)
    n = token_count(N, least=2.0)
    if n.ndim:
        raise ValueError(f"N has shape {n.shape}; predict_spectrum takes one number of tokens")
    unique = {id(law): law for row in chosen.laws for law in row}
    ranks = {key: law.ranks(n) for key, law in unique.items()}
    spectra = {key: law.singular_values(float(n), k) for key, law in unique.items()}
    keys = [[id(law) for law in row] for row in chosen.laws]
    dataset = xr.Dataset(
        {"singular_value": (("layer", "head", "k"), np.array([[spectra[key] for key in row] for row in keys]))},
        coords={"layer": np.arange(chosen.layers), "head": np.arange(chosen.heads), "k": np.arange(k)},
    )
    dataset["singular_value"].attrs = {"long_name": "singular value of the attention matrix", "units": ONE}
    names = {"frobenius": "Frobenius norm of the attention matrix", **RANK_NAMES}
    for name, long_name in names.items():
        values = np.array([[ranks[key][name] for key in row] for row in keys])
        dataset[name] = (("layer", "head"), values, {"long_name": long_name, "units": ONE})
    entropy, flag = _entropy(chosen, n), condensed(logit_variance(chosen.kappa, chosen.head_dim), n)
    dataset["entropy"] = (("layer", "head"), entropy, {"long_name": "mean entropy of an attention row", "units": "nat"})
    dataset["condensed"] = (("layer", "head"), flag, {"long_name": "logit variance above ln(N)/2", "units": ONE})
    dataset.attrs = _attrs(chosen) | {"tokens": float(n), "frames": float(n) / chosen.tokens_per_frame}
    return dataset


def _attention(params: RankParams, n: Array) -> dict[str, tuple[Array, str, str]]:
    unique = {id(law): law.ranks(n) for law in {id(law): law for row in params.laws for law in row}.values()}
    keys = [[id(law) for law in row] for row in params.laws]
    out = {}
    for name, long_name in RANK_NAMES.items():
        values = np.array([np.mean([unique[key][name] for key in row], axis=0) for row in keys])
        out[f"attention_{name}"] = (values, f"{long_name} of attention, mean over heads", ONE)
    s2 = logit_variance(params.kappa, params.head_dim).reshape(params.kappa.shape + (1,) * n.ndim)
    out["entropy"] = (_entropy(params, n).mean(1), "mean entropy of an attention row, mean over heads", "nat")
    out["condensed"] = (condensed(s2, n).mean(1), "share of heads with logit variance above ln(N)/2", ONE)
    return out


def _tokens(params: RankParams, n: Array) -> dict[str, tuple[Array, str, str]]:
    per_frame = np.minimum(n, params.tokens_per_frame)
    column = (-1,) + (1,) * n.ndim
    dim = params.token_dim.reshape(column)
    if params.energies is None:
        energies = rollout(params.recursion, params.start, params.layers, n / per_frame, per_frame)[1:]
        count = effective_count(n, dim)
    else:
        energies = sample_energies(params.energies.reshape((*column, 3)), n / per_frame, per_frame)
        count = np.clip(dim, 2.0, n)
    g = np.minimum(spread(energies, n), 1.0)
    ranks = equiangular_token_ranks(np.maximum(count, 2.0), g)
    out = {f"token_{name}": (ranks[name], f"{text} of the token matrix", ONE) for name, text in RANK_NAMES.items()}
    depth = (np.arange(params.layers) + 1.0).reshape(column)
    out["spread"] = (g, "spread of the tokens, 1 - mean pairwise cosine", ONE)
    out["spread_reference"] = (g[-1] * params.layers / depth, "O(1/L) law through the spread of the last layer", ONE)
    if params.layers >= 3:
        exponent, error = depth_exponent(g)
    else:
        exponent, error = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    out["depth_exponent"] = (exponent, "fitted exponent e of spread ~ depth^-e over the last half of the layers", ONE)
    out["depth_exponent_se"] = (error, "standard error of the fitted exponent", ONE)
    return out


def _entropy(params: RankParams, n: Array) -> Array:
    """Mean row entropy (layer, head, ...): ln N minus the sphere's deficit, or the probe's shifted by ln(N/N_0)."""
    shape = params.kappa.shape + (1,) * n.ndim
    if params.entropy is None:
        kappas, where = np.unique(params.kappa, return_inverse=True)
        deficit = np.array([entropy_deficit(kappa, params.head_dim) for kappa in kappas])[where].reshape(shape)
    else:
        deficit = (np.log(params.entropy_tokens) - params.entropy).reshape(shape)
    return np.clip(np.log(n) - deficit, 0.0, np.log(n))


def _resolve(params: RankParams | str) -> RankParams:
    return preset(params) if isinstance(params, str) else params


def _attrs(params: RankParams) -> dict[str, str]:
    versions = {f"{module.__name__}_version": module.__version__ for module in (np, scipy, xr)}
    return {
        "method": params.method,
        "params": params.name,
        "package_version": _version(),
        "dtype": "float64",
        **versions,
    }


def _version() -> str:
    try:
        return metadata.version("meanfield-accel")
    except metadata.PackageNotFoundError:
        return "not installed"
