"""What makes the fields of `meanfield.params.RankParams` consistent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, count, in_range, scalar
from meanfield.probe import Probe
from meanfield.recursion import Recursion

if TYPE_CHECKING:
    from meanfield.params import RankParams

ENERGY_RANGE = (1e-100, 1e100)
"""Range of the energy of a token, so that ratios and squares of energies stay within float64."""
ENERGIES = "population energies (m, b, w) are mean squares, not all zero"


def checked_fields(params: RankParams) -> dict[str, Any]:
    """The fields with their types settled: arrays in float64, whole numbers as int. ValueError names what is wrong."""
    kappa = in_range("kappa", params.kappa, 1e-6, 1e4, remedy="kappa is the largest logit of a head")
    if kappa.ndim != 2 or kappa.size == 0:
        raise ValueError(f"kappa has shape {kappa.shape}; give (layers, heads)")
    layers, shape = kappa.shape[0], kappa.shape
    token_dim = in_range("token_dim", params.token_dim, 1.0, remedy="the dimension the token cloud spans")
    if token_dim.shape != (layers,):
        raise ValueError(f"token_dim has shape {token_dim.shape} for {layers} layers; give one per layer")
    if not isinstance(params.recursion, Recursion):
        raise ValueError(f"recursion is a {type(params.recursion).__name__}; give a meanfield.Recursion")
    _check_probes(params, shape)
    scalar("recursion_residual", params.recursion_residual, 0.0, remedy="it is a root mean square")
    out = {
        "kappa": kappa,
        "token_dim": token_dim,
        "head_dim": count("head_dim", params.head_dim, least=2, remedy="give the dimension D of a head"),
        "tokens_per_frame": count("tokens_per_frame", params.tokens_per_frame, least=1, remedy="count the specials"),
        "start": tuple(_energies("start", params.start, (3,)).tolist()),
    }
    if params.energies is not None:
        out["energies"] = _energies("energies", params.energies, (layers, 3))
    if params.sphere_dim is not None:
        dims = in_range("sphere_dim", params.sphere_dim, 2.0, remedy="directions on a sphere need two dimensions")
        out["sphere_dim"] = np.round(_per_head("sphere_dim", dims, shape))
    return out | _entropies(params, shape)


def _energies(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    energies = in_range(name, value, 0.0, ENERGY_RANGE[1], remedy=ENERGIES)
    if energies.shape != shape:
        raise ValueError(f"{name} has shape {energies.shape}; give (m, b, w) in shape {shape}")
    in_range(f"the energy of a token in {name}", energies.sum(-1), *ENERGY_RANGE, remedy=ENERGIES)
    return energies


def _check_probes(params: RankParams, shape: tuple[int, int]) -> None:
    probes, replicates = params.probes, params.replicates
    for name, members, kind in (("probes", probes, Probe), ("replicates", replicates, type(params))):
        if not isinstance(members, tuple) or not all(isinstance(member, kind) for member in members):
            raise ValueError(f"{name} is a {type(members).__name__}; give a tuple of {kind.__name__}, or ()")
    if len(probes) > 2 or any(probe.values.shape[:2] != shape for probe in probes):
        shapes = [probe.values.shape for probe in probes]
        raise ValueError(f"probes of shapes {shapes} for kappa {shape}; give at most two, (layers, heads, n)")
    if len(probes) == 2 and probes[0].tokens >= probes[1].tokens:
        raise ValueError(f"probes at N={[probe.tokens for probe in probes]}; give the smaller first")
    if replicates and (
        len(replicates) < 2
        or any(r.kappa.shape != shape or r.replicates for r in replicates)
        or len({r.probe_tokens for r in (params, *replicates)}) > 1
    ):
        raise ValueError(
            f"{len(replicates)} replicates: give at least 2, of the same layers, heads and probe sizes, "
            "without replicates of their own"
        )


def _entropies(params: RankParams, shape: tuple[int, int]) -> dict[str, Any]:
    if (params.entropy is None) != (params.entropy_tokens is None):
        raise ValueError("entropy and entropy_tokens belong together; give both or neither")
    if params.small_entropy is not None and (params.entropy is None or len(params.probes) != 2):
        raise ValueError("small_entropy belongs to the smaller of two probes; give entropy and both probes with it")
    if params.entropy is None:
        return {}
    out: dict[str, Any] = {
        "entropy_tokens": count("entropy_tokens", params.entropy_tokens, least=2, remedy="N of the entropy")
    }
    tokens = {"entropy": out["entropy_tokens"]}
    if params.small_entropy is not None:
        tokens["small_entropy"] = params.probes[0].tokens
    for name, n in tokens.items():
        remedy = "an entropy lies within 0 .. ln N, in nats"
        value = in_range(name, getattr(params, name), 0.0, float(np.log(n)) + 1e-6, remedy=remedy)
        out[name] = _per_head(name, value, shape)
    return out


def _per_head(name: str, value: Array, shape: tuple[int, int]) -> Array:
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape} for kappa {shape}; give (layers, heads)")
    return value
