"""RankParams: what predict_rank needs to know about a model, as a frozen, validated, JSON-serialisable value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, in_range
from meanfield.closed_forms import equiangular_token_ranks
from meanfield.extrapolation import ProbeLaw, one_probe_law, two_probe_law
from meanfield.finite_n import PopulationLaw, sphere_law
from meanfield.recursion import Recursion, fit_recursion, population_energies, spread
from meanfield.sphere import kappa_from_deficit


@dataclass(frozen=True, eq=False)
class Probe:
    """Singular values of every attention matrix at one number of tokens: values (L, H, n) descending, all n of them."""

    tokens: int
    values: Array

    def __post_init__(self) -> None:
        values = in_range("probe values", self.values, 0.0, remedy="singular values are not negative")
        if values.ndim != 3 or not 8 <= values.shape[-1] <= self.tokens:
            raise ValueError(
                f"probe values have shape {values.shape} at N={self.tokens} tokens; "
                "give (layers, heads, n) with 8 <= n <= N"
            )
        object.__setattr__(self, "values", np.sort(values, axis=-1)[..., ::-1])


@dataclass(frozen=True, eq=False)
class RankParams:
    """Parameters of the rank prediction; `eq` is by identity, compare `to_dict()`.

    kappa (L, H)          logit strength of each head on the sphere: logits kappa cos, s^2 = kappa^2/head_dim
    head_dim              D
    tokens_per_frame      P, specials included
    recursion, start      the three-mode recursion and its population energies (m, b, w) before the first layer
    energies (L, 3)       population energies measured after each layer, which then replace the recursion's; or None
    recursion_residual    rms residual of the log energies the recursion was fitted to; 0 when it was derived
    token_dim (L,)        dimension d the token cloud spans after each layer: n = 1/(1/N + 1/d) for the recursion, n = d
                          (at most N) with measured energies, where d was fitted to a measured effective rank
    probes                none, one, or two (smaller first) sets of measured singular values; they replace the sphere
    law entropy (L, H), entropy_tokens    mean row entropy (nats) measured at that N; None: the sphere's
    ValueError on inconsistent shapes or values.
    """

    name: str
    kappa: Array
    head_dim: int
    tokens_per_frame: int
    recursion: Recursion
    start: tuple[float, float, float]
    token_dim: Array
    energies: Array | None = None
    recursion_residual: float = 0.0
    probes: tuple[Probe, ...] = ()
    entropy: Array | None = None
    entropy_tokens: int | None = None

    def __post_init__(self) -> None:
        kappa = in_range("kappa", self.kappa, 1e-6, 1e4, remedy="kappa is the largest logit of a head")
        if kappa.ndim != 2 or kappa.size == 0:
            raise ValueError(f"kappa has shape {kappa.shape}; give (layers, heads)")
        token_dim = in_range("token_dim", self.token_dim, 1.0, remedy="the dimension the token cloud spans")
        if token_dim.shape != kappa.shape[:1]:
            raise ValueError(f"token_dim has shape {token_dim.shape} for {kappa.shape[0]} layers; give one per layer")
        if self.head_dim < 2 or self.tokens_per_frame < 1:
            raise ValueError(
                f"head_dim={self.head_dim}, tokens_per_frame={self.tokens_per_frame}: give D >= 2 and P >= 1"
            )
        start = in_range("start", self.start, 0.0, remedy="population energies (m, b, w) are mean squares")
        if start.shape != (3,) or start.sum() == 0.0:
            raise ValueError(f"start={self.start}: give three energies (m, b, w), not all zero")
        if self.energies is not None:
            energies = in_range("energies", self.energies, 0.0, remedy="population energies (m, b, w) are mean squares")
            if energies.shape != (kappa.shape[0], 3):
                raise ValueError(f"energies have shape {energies.shape} for {kappa.shape[0]} layers; give (layers, 3)")
            object.__setattr__(self, "energies", energies)
        in_range("recursion_residual", self.recursion_residual, 0.0, remedy="it is a root mean square")
        if len(self.probes) > 2 or any(probe.values.shape[:2] != kappa.shape for probe in self.probes):
            shapes = [probe.values.shape for probe in self.probes]
            raise ValueError(f"probes of shapes {shapes} for kappa {kappa.shape}; give at most two, (layers, heads, n)")
        if len(self.probes) == 2 and self.probes[0].tokens >= self.probes[1].tokens:
            raise ValueError(f"probes at N={[probe.tokens for probe in self.probes]}; give the smaller first")
        if (self.entropy is None) != (self.entropy_tokens is None):
            raise ValueError("entropy and entropy_tokens belong together; give both or neither")
        object.__setattr__(self, "kappa", kappa)
        object.__setattr__(self, "token_dim", token_dim)
        object.__setattr__(self, "start", tuple(float(x) for x in start))
        if self.entropy is not None:
            limit = float(np.log(self.entropy_tokens)) + 1e-6
            entropy = in_range("entropy", self.entropy, 0.0, limit, remedy="an entropy lies within 0 .. ln N, in nats")
            if entropy.shape != kappa.shape:
                raise ValueError(f"entropy has shape {entropy.shape} for kappa {kappa.shape}; give (layers, heads)")
            object.__setattr__(self, "entropy", entropy)

    @property
    def layers(self) -> int:
        """Number of layers described."""
        return self.kappa.shape[0]

    @property
    def heads(self) -> int:
        """Number of heads per layer."""
        return self.kappa.shape[1]

    @property
    def constant(self) -> bool:
        """Whether all layers are alike, so that the parameters describe any number of layers."""
        alike = np.all(self.kappa == self.kappa[:1]) and np.all(self.token_dim == self.token_dim[0])
        return bool(alike) and not self.probes and self.entropy is None and self.energies is None

    @property
    def method(self) -> str:
        """Which law gives the attention ranks."""
        return ("finite-N sphere law", "finite-N law from one probe", "finite-N law from two probes")[len(self.probes)]

    @cached_property
    def laws(self) -> tuple[tuple[PopulationLaw | ProbeLaw, ...], ...]:
        """The finite-N law of every head, [layer][head]; equal kappas share one."""
        if self.probes:
            return tuple(tuple(self._probe_law(i, j) for j in range(self.heads)) for i in range(self.layers))
        shared = {kappa: sphere_law(kappa, self.head_dim) for kappa in np.unique(self.kappa)}
        return tuple(tuple(shared[kappa] for kappa in row) for row in self.kappa)

    def _probe_law(self, layer: int, head: int) -> ProbeLaw:
        spectra = [(probe.values[layer, head], probe.tokens) for probe in self.probes]
        return one_probe_law(*spectra[0]) if len(spectra) == 1 else two_probe_law(*spectra[0], *spectra[1])

    def first(self, layers: int) -> RankParams:
        """The parameters of the first `layers` layers; more than described only when all are alike (`constant`).

        ValueError otherwise, or when layers < 1.
        """
        if int(layers) != layers or layers < 1:
            raise ValueError(f"L={layers} is not a positive integer; give the number of global-attention layers")
        if layers == self.layers:
            return self
        if layers > self.layers and not self.constant:
            raise ValueError(
                f"L={layers} exceeds the {self.layers} layers of params {self.name!r}, which differ between layers; "
                f"use L <= {self.layers} or probe a deeper model"
            )
        index = np.minimum(np.arange(layers), self.layers - 1)
        probes = tuple(Probe(probe.tokens, probe.values[index]) for probe in self.probes)
        per_layer = ("kappa", "token_dim", "energies", "entropy")
        changed = {key: None if getattr(self, key) is None else getattr(self, key)[index] for key in per_layer}
        changed["probes"] = probes
        return RankParams(**{**{name: getattr(self, name) for name in self.__dataclass_fields__}, **changed})

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values."""
        return {
            "name": self.name,
            "kappa": self.kappa.tolist(),
            "head_dim": int(self.head_dim),
            "tokens_per_frame": int(self.tokens_per_frame),
            "recursion": asdict(self.recursion),
            "start": list(self.start),
            "token_dim": self.token_dim.tolist(),
            "energies": None if self.energies is None else self.energies.tolist(),
            "recursion_residual": float(self.recursion_residual),
            "probes": [{"tokens": int(probe.tokens), "values": probe.values.tolist()} for probe in self.probes],
            "entropy": None if self.entropy is None else self.entropy.tolist(),
            "entropy_tokens": None if self.entropy_tokens is None else int(self.entropy_tokens),
        }

    def to_json(self) -> str:
        """JSON text; `from_json` gives back equal values, bit for bit."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RankParams:
        """The inverse of `to_dict`. ValueError when a key is missing or unknown."""
        names = set(cls.__dataclass_fields__)
        if set(data) != names:
            raise ValueError(
                f"RankParams JSON: missing {sorted(names - set(data))}, unknown {sorted(set(data) - names)}"
            )
        probes = tuple(Probe(probe["tokens"], np.asarray(probe["values"])) for probe in data["probes"])
        return cls(**{**data, "recursion": Recursion(**data["recursion"]), "probes": probes})

    @classmethod
    def from_json(cls, text: str) -> RankParams:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_probe(cls, arrays: Mapping[str, Any], *, name: str = "probe", digits: int = 6) -> RankParams:
        """Parameters from measurements on a few frames of a trained model.

        Required entries of `arrays` (L global layers, H heads, S frames, P tokens per frame, N = S P):
          singular_values      (L, H, n) all singular values of each attention matrix at the larger probe (n = N)
          frames               S of that probe, >= 2
          tokens_per_frame     P
          head_dim             D
          entropy              (L, H) mean row entropy of these matrices, nats
          token_energies       (L + 1, 3) mean squares (M, D_b, D_w) per token of the residual stream before the first
                               layer and after each frame + global pair: |mean|^2, between frames, within frames
        Optional:
          small_singular_values (L, H, n'), small_frames    a nested smaller probe: calibrates the tail
          token_effective_rank (L,) Roy-Vetterli rank of the (N, C) token matrix after each layer: gives token_dim
          channels             C, the token dimension otherwise (default heads * head_dim)
          spectrum_tokens, small_spectrum_tokens    numbers of tokens of the two spectra, where they are those of random
                               tokens of the probe instead of all tokens of its frames
        Singular values are rounded to `digits` significant digits, to keep the JSON small.
        ValueError names what is missing or inconsistent.
        """
        required = ("singular_values", "frames", "tokens_per_frame", "head_dim", "entropy", "token_energies")
        missing = [key for key in required if key not in arrays]
        if ("small_singular_values" in arrays) != ("small_frames" in arrays):
            missing.append("small_singular_values and small_frames together")
        if missing:
            raise ValueError(f"from_probe misses {missing}; see RankParams.from_probe for the arrays")
        frames, per_frame, dim = (int(arrays[key]) for key in ("frames", "tokens_per_frame", "head_dim"))
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
        deficit = np.log(rows) - in_range(
            "entropy", entropy, 0.0, np.log(rows) + 1e-6, remedy="give nats, at most ln N"
        )
        recursion, residual = fit_recursion(energies, frames, per_frame)
        return cls(
            name=name,
            kappa=kappa_from_deficit(np.maximum(deficit, 0.0), dim),
            head_dim=dim,
            tokens_per_frame=per_frame,
            recursion=recursion,
            start=tuple(population_energies(energies[0], frames, per_frame)),
            token_dim=token_dim,
            energies=population_energies(energies[1:], frames, per_frame),
            recursion_residual=residual,
            probes=tuple(probes),
            entropy=entropy,
            entropy_tokens=rows,
        )


@cache
def preset(name: str) -> RankParams:
    """Shipped parameters: "vggt-init" (derived) or "testbed" (probed). ValueError for other names, or a missing file.

    vggt-init, VGGT at initialisation: 24 layers, 16 heads of D = 64 (C = 1024), P = 1041 = 5 + 37 * 28 tokens per
    frame. QK-LayerNorm gives |q| = |k| = sqrt(D), hence kappa = sqrt(D) = 8. LayerScale 0.01 times the gain 1/3 of W_o
    W_v (nn.Linear's default, variance 1/(3 fan_in) each) on tokens of unit rms, random V (coherence 0); an MLP adds
    1e-4 times 0.035 per block to each token. The energies before the first layer (.3, .1, .6) are a modelling choice.
    """
    if name == "vggt-init":
        layers, dim, gain, mlp = 24, 64, 0.01 / 3.0, 2.0 * 1e-4 * 0.035
        return RankParams(
            name=name,
            kappa=np.full((layers, 16), np.sqrt(dim)),
            head_dim=dim,
            tokens_per_frame=1041,
            recursion=Recursion(gain, gain, coherence=0.0, noise_token=mlp),
            start=(0.3, 0.1, 0.6),
            token_dim=np.full(layers, 1024.0),
        )
    if name == "testbed":
        return load_params(Path(str(resources.files("meanfield"))) / "presets" / "testbed.json")
    raise ValueError(f"params={name!r} is not a preset; use 'vggt-init', 'testbed' or a RankParams")


def load_params(path: Path) -> RankParams:
    """RankParams from a JSON file. ValueError when it does not exist, naming how to make it."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; make it from a probe of the trained model: "
            "path.write_text(RankParams.from_probe(arrays, name='testbed').to_json())"
        )
    return RankParams.from_json(path.read_text(encoding="utf-8"))


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
