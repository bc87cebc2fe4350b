"""What a few frames tell about every global-attention layer: `probe` measures it, a `Profile` keeps it.

A profile holds, per layer and head, spectra, entropies and class statistics (`accel.statistics`); per layer and
candidate policy the error of the attention output; and per layer the sensitivity of the model's outputs to such an
error.
Predictors carry it to other numbers of frames, `accel.schedule.plan` decides by it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from accel.error_terms import Rows, error_terms, few_queries
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import VGGTConfig
from accel.options import allows, default_options, probed
from accel.patch import observe, record
from accel.policies import Context, Policy, policy_from_dict
from accel.provenance import provenance
from accel.sensitivity import perturbations, sensitivity
from accel.sites import sites
from accel.spectra import DENSE_UP_TO, attention_spectrum
from accel.statistics import (
    CLASSES,
    VECTORS,
    mean_statistics,
    option_errors,
    query_statistics,
    sample_queries,
    token_energies,
)
from meanfield.params import RankParams
from meanfield.ranks import effective_rank
from meanfield.reductions.displacements import GROWTH

LONG_NAMES = {
    "singular_value": "singular values of the attention matrix, descending",
    "small_singular_value": "singular values at the smaller probe, descending",
    "small_entropy": "mean entropy of the rows at the smaller probe",
    "frobenius": "Frobenius norm of the attention matrix",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
    "effective_rank": "effective rank (Roy and Vetterli)",
    "effective_rank_energy": "effective rank of the energies",
    "entropy": "mean entropy of the rows",
    "query_mean": "|mean query|^2 / mean |query|^2",
    "key_mean": "|mean key|^2 / mean |key|^2",
    "logit_mean": "mean logit",
    "logit_variance": "variance of the logits over keys, mean over queries",
    "token_energy": "token energies: global mean, between frames, within frames",
    "token_effective_rank": "effective rank (Roy and Vetterli) of the token matrix",
    "option_error": "relative rms error of the attention output",
    "output_error": "output difference (total) with this policy in this layer only",
    "sensitivity": "output difference per relative error of the attention output",
    "mass": "attention mass of a class of keys",
    "gram": "inner products of class outputs and mean values",
    "patch_logit": "mean logit over patches outside frame 0, minus log-sum-exp",
    "query": "token index of the sampled query",
    "error_term": "growth of the squared error of a policy with the number of frames, by formula",
    "term_query": "token index of the query of the error terms",
}

COUNTS = ("small_frames", "spectrum_tokens", "small_spectrum_tokens", "candidates")
ATTRIBUTES = ("layout", "config", "measured", *COUNTS)


@dataclass(frozen=True, eq=False)
class Profile:
    """Measurements of a probe as a Dataset; see `probe` for its variables. Save and load as netCDF."""

    data: xr.Dataset

    def __post_init__(self) -> None:
        missing = [name for name in (*LONG_NAMES, "kind") if name not in self.data]
        missing += [name for name in ATTRIBUTES if name not in self.data.attrs]
        if missing:
            raise AccelError(f"the dataset lacks {missing}: it is not a profile of this version; probe again")
        try:
            for name in COUNTS:
                if int(self.data.attrs[name]) < 1:
                    raise ValueError(f"{name}={self.data.attrs[name]}")
            _, _, measured = self.layout, self.config, self.measured  # parsed
            if list(self.data["term"].values) != list(GROWTH):
                raise ValueError(f"error terms {self.data['term'].values.tolist()}")
            if len(measured) != self.data.sizes["option"]:
                raise ValueError(f"{len(measured)} policies for {self.data.sizes['option']} errors")
        except (AccelError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise AccelError(f"the dataset is not a profile of this version ({error}); probe again") from error

    @property
    def layout(self) -> TokenLayout:
        """The layout of the probe."""
        return TokenLayout.from_dict(json.loads(self.data.attrs["layout"]))

    @property
    def layers(self) -> int:
        return self.data.sizes["layer"]

    @property
    def heads(self) -> int:
        return self.data.sizes["head"]

    @property
    def config(self) -> VGGTConfig:
        """The configuration of the model that was probed."""
        return VGGTConfig.from_json(self.data.attrs["config"])

    @property
    def measured(self) -> tuple[Policy, ...]:
        """The policies whose error was measured."""
        return tuple(policy_from_dict(d) for d in json.loads(self.data.attrs["measured"]))

    @property
    def options(self) -> tuple[Policy, ...]:
        """The candidates that the probe was asked for, what `plan` chooses from."""
        return self.measured[: int(self.data.attrs["candidates"])]

    def check(self, layout: TokenLayout) -> None:
        """Raise AccelError unless `layout` differs from the probe's in the number of frames only."""
        if replace(layout, frames=self.layout.frames) != self.layout:
            raise AccelError(
                f"the profile was made at {self.layout}, not the grid of {layout}; probe images of that size"
            )

    def option_error(self, policies: Sequence[Policy]) -> np.ndarray:
        """Relative rms error of the attention output at the probe, (layer, option), each of its `probed` form."""
        measured, columns = self.measured, []
        for policy in policies:
            was = probed(policy, measured)
            exact = was not in measured
            columns.append(np.zeros(self.layers) if exact else self.data["option_error"].values[:, measured.index(was)])
        return np.stack(columns, -1)

    def sensitivity(self, policies: Sequence[Policy]) -> np.ndarray:
        """Output difference per relative attention error, (layer, option): each policy has the kind of its class,
        "frame" or else "subsample" (the one that was measured, where only one was)."""
        kinds = list(self.data["kind"].values)
        values = self.data["sensitivity"].values
        return np.stack([values[:, kinds.index(p.name) if p.name in kinds else len(kinds) - 1] for p in policies], -1)

    def rank_arrays(self) -> dict[str, Any]:
        """What RankParams.from_probe takes, from_probes of several scenes. AccelError for fewer than 4 layers."""
        data, layout = self.data, self.layout
        if self.layers < 4:
            raise AccelError(f"the rank prediction fits at least 4 layers, this model has {self.layers}")
        return {
            "singular_values": data["singular_value"].values,
            "frames": layout.frames,
            "tokens_per_frame": layout.tokens_per_frame,
            "head_dim": self.config.head_dim,
            "entropy": data["entropy"].values,
            "token_energies": data["token_energy"].values,
            "small_singular_values": data["small_singular_value"].values,
            "small_entropy": data["small_entropy"].values,
            "small_frames": int(data.attrs["small_frames"]),
            "spectrum_tokens": int(data.attrs["spectrum_tokens"]),
            "small_spectrum_tokens": int(data.attrs["small_spectrum_tokens"]),
            "token_effective_rank": data["token_effective_rank"].values,
            "channels": self.config.embed_dim,
        }

    def rank_params(self, *, name: str = "probe") -> RankParams:
        """Parameters of meanfield.predict_rank from this probe. AccelError for fewer than 4 layers."""
        return RankParams.from_probe(self.rank_arrays(), name=name)

    def save(self, path: Path | str) -> None:
        """Write a netCDF file, whole or not at all."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        encoding = {name: {"zlib": True} for name in ("gram", "singular_value", "small_singular_value", "error_term")}
        self.data.to_netcdf(part, engine="h5netcdf", encoding=encoding)
        part.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """The inverse of `save`."""
        path = Path(path)
        if not path.is_file():
            raise AccelError(f"no profile at {path}; make one by probe(model, images).save(path)")
        try:
            with xr.open_dataset(path, engine="h5netcdf") as data:
                return cls(data.load())
        except AccelError as error:
            raise AccelError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError) as error:
            raise AccelError(f"{path} is not a profile ({error}); give the profile.nc of an earlier run") from error


def probe(
    model: nn.Module,
    images: Tensor,
    *,
    frames: int = 4,
    options: Sequence[Policy] | None = None,
    queries: int = 256,
    generator: torch.Generator,
    progress: bool = True,
) -> Profile:
    """Statistics of every global-attention layer from the first `frames` images; 2 L + 2 forwards of few frames.

    images (1, S, 3, H, W) in [0, 1]; fewer than `frames` are taken as they are, at least 2; only a probe of 3 or more
    says something about other numbers of frames. options default to `default_options`; those the layout does not allow
    are left out. queries: rows sampled per head (by `generator`, on the CPU) for the class statistics. The progress bar
    goes to stderr.

    Spectra are those of all tokens up to N = 1200, and of the first frames // 2 frames; of a larger probe those of
    1200 and of 600 random tokens, as if the scene had so many (attrs spectrum_tokens, small_spectrum_tokens).
    Sensitivities of a larger probe are measured on the images reduced to about 512 tokens: they are ratios of relative
    errors, taken as independent of the resolution.

    Variables: (layer, head, k) singular_value and small_singular_value, all of them; (layer, head)
    frobenius, entropy, small_entropy, ranks as in `measure_spectra`, query_mean, key_mean, logit_mean, logit_variance;
    (depth, energy) token_energy before the first pair and after each, token_effective_rank (layer); option_error
    (layer, option); output_error and sensitivity (layer, kind); the class statistics of `accel.statistics` over (layer,
    head, query, ...); error_term (layer, head, term_query, option, term), `accel.error_terms`, NaN without a formula.
    """
    images, layout, small = _frames(model, images, frames)
    options = default_options(layout) if options is None else tuple(p for p in options if allows(p, layout))
    kinds = perturbations(options, layout)
    measured = [*options, *(p for p in kinds.values() if p not in options)]
    depth = len(sites(model))
    index = sample_queries(layout, queries, generator)
    columns = (TextColumn("probe, {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with torch.no_grad(), Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("attention", total=(1 + (layout.tokens <= DENSE_UP_TO) + len(kinds)) * depth)
        reference, values, tokens = _measure(
            model, images, layout, measured, index, generator, lambda: bar.advance(task)
        )
        bar.update(task, description=f"{small} frames")
        errors = values.pop("option_error")
        if layout.tokens <= DENSE_UP_TO:
            less = _small_spectra(model, images[:, :small], generator, lambda: bar.advance(task))
        else:
            less = tokens.pop("less")
        bar.update(task, description="sensitivity")
        at = errors[:, [measured.index(p) for p in kinds.values()]]
        output_error, gains = sensitivity(model, images, reference, at, list(kinds.values()), lambda: bar.advance(task))
    variables: dict[str, Any] = {
        **values,
        **tokens,
        "small_singular_value": (("layer", "head", "k_small"), less["singular_value"]),
        "small_entropy": (("layer", "head"), less["entropy"]),
        "option_error": (("layer", "option"), errors),
        "output_error": (("layer", "kind"), output_error),
        "sensitivity": (("layer", "kind"), gains),
        "query": (("query",), index.numpy()),
        "term_query": (("term_query",), few_queries(layout, index).numpy()),
    }
    coords = {
        "layer": np.arange(depth),
        "kind": list(kinds),
        "option": [p.describe() for p in measured],
        "energy": ["mean", "between", "within"],
        "key_class": list(CLASSES),
        "vector": list(VECTORS),
        "vector_2": list(VECTORS),
        "term": list(GROWTH),
    }
    data = xr.Dataset(variables, coords=coords)
    for name in data.data_vars:
        data[name].attrs = {"long_name": LONG_NAMES[name], "units": "nat" if name.endswith("entropy") else "1"}
    parameter = next(model.parameters())
    data.attrs = provenance(device=parameter.device, dtype=parameter.dtype, seed=generator.initial_seed()) | {
        "layout": json.dumps(layout.to_dict()),
        "small_frames": small,
        "spectrum_tokens": min(layout.tokens, DENSE_UP_TO),
        "small_spectrum_tokens": less["singular_value"].shape[-1],
        "measured": json.dumps([p.to_dict() for p in measured]),
        "candidates": len(options),
        "config": model.config.to_json(),
        "tokens": layout.tokens,
        "frames": layout.frames,
    }
    return Profile(data)


def _frames(model: nn.Module, images: Tensor, frames: int) -> tuple[Tensor, TokenLayout, int]:
    """The probe's images, their layout, and the number of frames of the smaller probe."""
    if images.ndim != 5 or images.shape[0] != 1:
        raise AccelError(f"images have shape {tuple(images.shape)}; give one scene, (1, frames, 3, height, width)")
    frames = min(frames, images.shape[1])
    if frames < 2:
        raise AccelError(f"a probe of {frames} frame has no other frames; give at least 2 images")
    if not hasattr(model, "config"):
        raise AccelError(f"{type(model).__qualname__} has no .config, so its cost is unknown; load it by load_model")
    images = images[:, :frames]
    return images, model.layout(images), max(2, frames // 2) if frames > 2 else 1


def _measure(model, images, layout, options, index, generator, advance):
    """One exact forward: the prediction, the variables over layers, and those over the residual stream."""
    layers: dict[int, dict[str, np.ndarray]] = {}
    energies, ranks, less = {}, {}, {}

    def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
        layer = context.layer
        spectrum = _spectrum(*_some(q, k, DENSE_UP_TO, generator), generator, layer)
        if layout.tokens > DENSE_UP_TO:
            half = _some(q, k, DENSE_UP_TO // 2, generator)
            less[layer] = _spectrum(*half, generator, layer)
        found = {name: x.values for name, x in spectrum.items() if name in LONG_NAMES}
        for values in (mean_statistics(q[0], k[0]), query_statistics(q[0], k[0], v[0], layout, index)):
            found |= {name: x.cpu().numpy() for name, x in values.items()}
        found["gram"] = found["gram"].astype(np.float32)
        found["option_error"] = np.array(option_errors(q, k, v, layout, options, context=context))
        rows = Rows(q, k, v, layout, few_queries(layout, index), context)
        found["error_term"] = np.stack([error_terms(p, rows) for p in options], 2).astype(np.float32)
        layers[layer] = found
        advance()

    def stream(i: int, args: tuple, output: Tensor) -> None:
        x = (args[0] if i == 0 else output).reshape(layout.tokens, -1)
        energies[i] = token_energies(x, layout)
        if i:
            ranks[i - 1] = effective_rank(torch.linalg.svdvals(x.float()).double().cpu().numpy())

    trunk = model.aggregator
    with record(model, measure), observe([trunk.frame_blocks[0], *trunk.global_blocks], stream):
        reference = model(images)
    dims = {
        "singular_value": ("k",),
        "mass": ("query", "key_class"),
        "gram": ("query", "vector", "vector_2"),
        "patch_logit": ("query",),
        "error_term": ("term_query", "option", "term"),
    }
    order = sorted(layers)
    stacked = {name: np.stack([layers[layer][name] for layer in order]) for name in layers[0]}
    values = {name: (("layer", "head", *dims.get(name, ())), x) for name, x in stacked.items()}
    values["option_error"] = stacked["option_error"]
    tokens = {
        "token_energy": (("depth", "energy"), np.array([energies[i] for i in sorted(energies)])),
        "token_effective_rank": (("layer",), np.array([float(ranks[i]) for i in sorted(ranks)])),
    }
    if less:
        tokens["less"] = _stacked(less)
    return reference, values, tokens


def _some(q: Tensor, k: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """q and k of `count` random tokens, in order; all of them where there are no more."""
    tokens = q.shape[2]
    if tokens <= count:
        return q, k
    chosen = torch.randperm(tokens, generator=generator)[:count].sort().values.to(q.device)
    return q[:, :, chosen], k[:, :, chosen]


def _spectrum(q: Tensor, k: Tensor, generator: torch.Generator, layer: int) -> xr.Dataset:
    try:
        return attention_spectrum(q[0], k[0], generator=generator, count=q.shape[2], method="auto")
    except AccelError as error:
        raise AccelError(f"layer {layer}: {error}") from error


def _small_spectra(model, images, generator, advance) -> dict[str, np.ndarray]:
    """`_stacked` spectra of another exact forward."""
    found = {}

    def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
        layer = context.layer
        found[layer] = _spectrum(q, k, generator, layer)
        advance()

    with record(model, measure):
        model(images)
    return _stacked(found)


def _stacked(spectra: dict[int, xr.Dataset]) -> dict[str, np.ndarray]:
    """singular_value (layer, head, k) and entropy (layer, head) from the spectra of the layers."""
    names = ("singular_value", "entropy")
    return {name: np.stack([spectra[layer][name].values for layer in sorted(spectra)]) for name in names}
