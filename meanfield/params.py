"""RankParams: what predict_rank needs to know about a model, as a frozen, validated, JSON-serialisable value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, count
from meanfield.extrapolation import ProbeLaw, one_probe_law, two_probe_law
from meanfield.head_laws import HeadLaws
from meanfield.params_checks import checked_fields
from meanfield.probe import Probe, mean_arrays, probe_fields
from meanfield.qk_norm import sphere_law
from meanfield.recursion import Recursion
from meanfield.sphere import entropy_deficit
from meanfield.weights import weight_fields


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
    small_entropy (L, H)  the same at the smaller probe: gives the growth of the entropy with ln N
    sphere_dim (L, H)     number of directions a head's logits use, which replaces head_dim on the sphere; or None
    replicates            parameters of single scenes, of which these are the mean: they give intervals
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
    small_entropy: Array | None = None
    sphere_dim: Array | None = None
    replicates: tuple[RankParams, ...] = ()

    def __post_init__(self) -> None:
        for name, value in checked_fields(self).items():
            object.__setattr__(self, name, value)

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
    def probe_tokens(self) -> tuple[int, ...]:
        """Numbers of tokens of the probes, the smaller first."""
        return tuple(probe.tokens for probe in self.probes)

    @property
    def logit_variance(self) -> Array:
        """s^2 = kappa^2/D of every head, (layer, head)."""
        return self.kappa**2 / (self.head_dim if self.sphere_dim is None else self.sphere_dim)

    @property
    def method(self) -> str:
        """Which law gives the attention ranks."""
        return ("finite-N sphere law", "finite-N law from one probe", "finite-N law from two probes")[len(self.probes)]

    @property
    def uncalibrated(self) -> float:
        """Share of heads whose two probes no tail connects (`two_probe_law`), over replicates; 0 without two probes."""
        if len(self.probes) < 2:
            return 0.0
        members = self.replicates or (self,)
        return float(np.mean([not law.calibrated for member in members for row in member.laws.laws for law in row]))

    @cached_property
    def laws(self) -> HeadLaws:
        """The finite-N law of every head; equal spheres share one."""
        if self.probes:
            heads = range(self.heads)
            return HeadLaws(tuple(tuple(self._probe_law(i, j) for j in heads) for i in range(self.layers)))
        shared = {key: sphere_law(*key) for key in set(self._spheres.ravel())}
        return HeadLaws(tuple(tuple(shared[key] for key in row) for row in self._spheres))

    @cached_property
    def sphere_deficit(self) -> Array:
        """ln N - H of every head on its sphere, nats, (layer, head)."""
        shared = {key: entropy_deficit(*key) for key in set(self._spheres.ravel())}
        return np.array([[shared[key] for key in row] for row in self._spheres])

    @cached_property
    def _spheres(self) -> np.ndarray:
        """(kappa, dimension) of every head, (layer, head) of pairs."""
        dims = np.full(self.kappa.shape, self.head_dim) if self.sphere_dim is None else self.sphere_dim
        pairs = np.empty(self.kappa.shape, dtype=object)
        for index in np.ndindex(self.kappa.shape):
            pairs[index] = float(self.kappa[index]), int(dims[index])
        return pairs

    def _probe_law(self, layer: int, head: int) -> ProbeLaw:
        spectra = [(probe.values[layer, head], probe.tokens) for probe in self.probes]
        return one_probe_law(*spectra[0]) if len(spectra) == 1 else two_probe_law(*spectra[0], *spectra[1])

    def first(self, layers: int) -> RankParams:
        """The parameters of the first `layers` layers; more than described only when all are alike (`constant`).

        ValueError otherwise, or when layers < 1.
        """
        layers = count("L", layers, least=1, remedy="give the number of global-attention layers")
        if layers == self.layers:
            return self
        if layers > self.layers and not self.constant:
            raise ValueError(
                f"L={layers} exceeds the {self.layers} layers of params {self.name!r}, which differ between layers; "
                f"use L <= {self.layers} or probe a deeper model"
            )
        index = np.minimum(np.arange(layers), self.layers - 1)
        per_layer = ("kappa", "token_dim", "energies", "entropy", "small_entropy", "sphere_dim")
        changed = {key: getattr(self, key)[index] for key in per_layer if getattr(self, key) is not None}
        probes = tuple(Probe(probe.tokens, probe.values[index]) for probe in self.probes)
        replicates = tuple(replicate.first(layers) for replicate in self.replicates)
        return replace(self, **changed, probes=probes, replicates=replicates)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}
        return plain | {
            "recursion": asdict(self.recursion),
            "start": list(self.start),
            "probes": [{"tokens": int(probe.tokens), "values": probe.values.tolist()} for probe in self.probes],
            "replicates": [replicate.to_dict() for replicate in self.replicates],
        }

    def to_json(self) -> str:
        """JSON text; `from_json` gives back equal values, bit for bit."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RankParams:
        """The inverse of `to_dict`. ValueError when a key is missing or unknown, or a value not of its type."""
        names = set(cls.__dataclass_fields__)
        if not isinstance(data, Mapping):
            raise ValueError(f"RankParams JSON holds a {type(data).__name__}; give what to_dict returns")
        if set(data) != names:
            raise ValueError(
                f"RankParams JSON: missing {sorted(names - set(data))}, unknown {sorted(set(data) - names)}"
            )
        try:
            probes = tuple(Probe(probe["tokens"], probe["values"]) for probe in data["probes"])
            replicates = tuple(cls.from_dict(replicate) for replicate in data["replicates"])
            changed = {"recursion": Recursion(**data["recursion"]), "probes": probes, "replicates": replicates}
            return cls(**{**data, **changed})
        except (TypeError, KeyError) as error:
            raise ValueError(f"RankParams JSON: {error}; give what to_dict returns") from None

    @classmethod
    def from_json(cls, text: str) -> RankParams:
        """The inverse of `to_json`. ValueError when it is not JSON, and as `from_dict`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}; give the text that to_json returns") from None

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
          small_entropy        (L, H) mean row entropy at that smaller probe, nats: the entropy's growth with ln N
          token_effective_rank (L,) Roy-Vetterli rank of the (N, C) token matrix after each layer: gives token_dim
          channels             C, the token dimension otherwise (default heads * head_dim)
          spectrum_tokens, small_spectrum_tokens    numbers of tokens of the two spectra, where they are those of random
                               tokens of the probe instead of all tokens of its frames
        Singular values are rounded to `digits` significant digits, to keep the JSON small.
        ValueError names what is missing or inconsistent.
        """
        return cls(name=name, **probe_fields(arrays, digits=digits))

    @classmethod
    def from_probes(cls, probes: Sequence[Mapping[str, Any]], *, name: str = "probes", digits: int = 4) -> RankParams:
        """Parameters from several probes (scenes) taken alike, kept as `replicates`: predictions get intervals.

        Each entry is what `from_probe` takes. The parameters themselves are those of the averaged arrays, and the
        recursion is fitted to these only. ValueError when there are fewer than 2, or they differ in size.
        """
        pooled = cls.from_probe(mean_arrays(list(probes)), name=name, digits=digits)
        fitted = pooled.recursion, pooled.recursion_residual
        fields = [probe_fields(arrays, digits=digits, fitted=fitted) for arrays in probes]
        return replace(pooled, replicates=tuple(cls(name=f"{name} {i}", **field) for i, field in enumerate(fields)))

    @classmethod
    def from_weights(
        cls, arrays: Mapping[str, ArrayLike], *, heads: int, tokens_per_frame: int, name: str = "weights"
    ) -> RankParams:
        """Parameters from the weights alone, official state-dict names; see `meanfield.weights` for what is assumed."""
        return cls(name=name, tokens_per_frame=tokens_per_frame, **weight_fields(arrays, heads=heads))


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


def load_params(path: Path | str) -> RankParams:
    """RankParams from a JSON file. ValueError when it does not exist, naming how to make it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; make it from a probe of the trained model: "
            "path.write_text(RankParams.from_probe(arrays, name='testbed').to_json())"
        )
    return RankParams.from_json(path.read_text(encoding="utf-8"))
