"""Claim: prediction intervals from a few probed scenes cover what other scenes show at more frames as often as stated.

`python -m experiments.rank_intervals [--scenes 48] [--out experiments/results/rank_intervals]`. Probes are scenes of
the testbed at 2 and 4 frames; 80 % and 95 % intervals at 4, 8 and 16 frames are held against other scenes (dense SVD).
The first 16 scenes only measure how much of the known miss of the law is left (`meanfield.uncertainty.SHARE`); coverage
is taken over the others, in random splits of 8 probed and the rest predicted. Scenes are the independent units: a
scene's coverage is averaged over splits and layers, the error is that of the mean over scenes. Baseline: no model
error. Measuring takes 12 s for a scene on one core and is kept in --cache.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accel.models import load_model
from accel.patch import observe, record
from accel.spectra import attention_spectrum
from accel.statistics import token_energies
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report
from meanfield.params import RankParams
from meanfield.predict import predict_rank
from meanfield.ranks import effective_rank, spectrum_ranks
from meanfield.recursion import spread
from meanfield.uncertainty import SHARE, SINGLE_SHARE, known_misses, prediction_interval

SMALL, LARGE, TARGETS = 2, 4, (4, 8, 16)
LEVELS = (0.8, 0.95)
CALIBRATION, PROBED, SPLITS = 16, 8, 20
CLAIMED = "attention_effective_rank"
LINEAR = ("entropy",)
UNMODELLED = ("spread", "token_effective_rank")
VARIABLES = (*SHARE, *UNMODELLED)


@torch.no_grad()
def measure(model, images: torch.Tensor) -> dict[str, np.ndarray]:
    """All singular values and entropies of the attention, energies and rank of the tokens, by dense SVD."""
    attention, energies, ranks = {}, {}, {}
    layout = model.layout(images)

    def head(context, q, k, _v):
        generator = torch.Generator().manual_seed(context.layer)
        attention[context.layer] = attention_spectrum(q[0], k[0], generator=generator, count=q.shape[2], method="dense")

    def stream(i, args, output):
        x = (args[0] if i == 0 else output).reshape(layout.tokens, -1)
        energies[i] = token_energies(x, layout)
        if i:
            ranks[i - 1] = float(effective_rank(torch.linalg.svdvals(x.double()).numpy()))

    trunk = model.aggregator
    with record(model, head), observe([trunk.frame_blocks[0], *trunk.global_blocks], stream):
        model(images)
    order = sorted(attention)
    return {
        "singular_values": np.stack([attention[layer]["singular_value"].values for layer in order]),
        "entropy": np.stack([attention[layer]["entropy"].values for layer in order]),
        "token_energies": np.array([energies[i] for i in sorted(energies)]),
        "token_effective_rank": np.array([ranks[i] for i in sorted(ranks)]),
    }


def measured(model, scene: int, cache: Path) -> dict[str, np.ndarray]:
    """`measure` at 2, 4, 8 and 16 frames of one held-out scene, keyed name_frames, from the cache where it is there."""
    path = cache / f"{scene}.npz"
    if not path.is_file():
        images = sample_batch(held_out_generator(700_000 + scene), 1, max(TARGETS)).images
        found = {
            f"{name}_{frames}": value
            for frames in (SMALL, *TARGETS)
            for name, value in measure(model, images[:, :frames]).items()
        }
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **found)
    return dict(np.load(path))


def scene_params(data: dict[str, np.ndarray], per_frame: int, head_dim: int) -> RankParams:
    """Parameters from one scene's probe at 2 and 4 frames."""
    arrays = {"frames": LARGE, "small_frames": SMALL, "tokens_per_frame": per_frame, "head_dim": head_dim}
    names = ("singular_values", "entropy", "token_energies", "token_effective_rank")
    arrays |= {name: data[f"{name}_{LARGE}"] for name in names}
    arrays |= {f"small_{name}": data[f"{name}_{SMALL}"] for name in names[:2]}
    return RankParams.from_probe(arrays)


def truth(data: dict[str, np.ndarray], per_frame: int) -> dict[str, np.ndarray]:
    """What predict_rank predicts, measured: (frames, layer) each."""
    rows = []
    for frames in TARGETS:
        ranks = spectrum_ranks(data[f"singular_values_{frames}"])
        row = {f"attention_{name}": value.mean(1) for name, value in ranks.items()}
        row["entropy"] = data[f"entropy_{frames}"].mean(1)
        row["token_effective_rank"] = data[f"token_effective_rank_{frames}"]
        row["spread"] = spread(data[f"token_energies_{frames}"][1:], frames * per_frame)
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in VARIABLES}


def calibrated_shares(members, predicted, true) -> dict[str, tuple[float, float]]:
    """The shares of the step that are left, by variable: in the mean over the calibration scenes, and in one scene."""
    steps = (np.log(np.array(TARGETS) / LARGE) / np.log(LARGE / SMALL))[1:]
    shares = {}
    misses = known_misses(replace(members[0], replicates=tuple(members)))
    for name in SHARE:
        scale = np.asarray if name in LINEAR else np.log
        error = (scale(predicted[name]) - scale(true[name]))[:, 1:]
        mean = np.mean(error.mean(0) ** 2, axis=-1).sum() / (misses[name].step ** 2 * (steps**2).sum())
        own = [known_misses(member)[name] for member in members]
        left = np.mean(error**2, axis=(0, 2)) - np.mean([miss.own**2 for miss in own])
        single = np.maximum(left, 0.0).sum() / (np.mean([miss.step**2 for miss in own]) * (steps**2).sum())
        shares[name] = float(np.sqrt(mean)), float(np.sqrt(single))
    return shares


def main(
    weights: Annotated[str, typer.Option()] = "testbed",
    scenes: Annotated[int, typer.Option(min=CALIBRATION + 2 * PROBED)] = 48,
    seed: Annotated[int, typer.Option(help="Of the random splits.")] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for the measurements.")] = Path("runs/rank_intervals"),
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/rank_intervals"
    ),
) -> None:
    """Print coverage and width of the intervals and write them."""
    model = load_model(weights)
    per_frame = model.config.special_tokens + (model.config.image_size // model.config.patch_size) ** 2
    data = [measured(model, scene, cache) for scene in track(range(scenes), "measuring")]
    members = [scene_params(d, per_frame, model.config.head_dim) for d in track(data, "fitting")]
    layers = members[0].layers
    tokens = np.array(TARGETS) * float(per_frame)
    true = [truth(d, per_frame) for d in data]
    true = {name: np.stack([t[name] for t in true]) for name in VARIABLES}  # (scene, frames, layer)
    alone = [{level: predict_rank(layers, tokens, params=m, level=level) for level in LEVELS} for m in members]
    predicted = {name: np.stack([a[LEVELS[0]][name].values.T for a in alone]) for name in VARIABLES}
    first = slice(0, CALIBRATION)
    shares = calibrated_shares(
        members[first], {n: v[first] for n, v in predicted.items()}, {n: v[first] for n, v in true.items()}
    )
    table = Table(
        "variable", "mean over scenes (shipped)", "one scene (shipped)", title="share of the two-size miss left"
    )
    for name, (mean, single) in shares.items():
        table.add_row(name, f"{mean:.2f} ({SHARE[name]})", f"{single:.2f} ({SINGLE_SHARE[name]})")
    Console().print(table)

    methods = ("with model error", "without")
    shape = (len(methods), len(LEVELS), len(VARIABLES), SPLITS, scenes, len(TARGETS), layers)
    covered, width = np.full(shape, np.nan), np.full((*shape[:4], *shape[5:]), np.nan)
    rng = np.random.default_rng(seed)
    for split in track(range(SPLITS), "splits"):
        order = rng.permutation(np.arange(CALIBRATION, scenes))
        probed, tested = order[:PROBED], order[PROBED:]
        ensemble = replace(members[probed[0]], replicates=tuple(members[i] for i in probed))
        for b, level in enumerate(LEVELS):
            found = predict_rank(layers, tokens, params=ensemble, level=level)
            for c, name in enumerate(VARIABLES):
                values = predicted[name][probed]
                plain = prediction_interval(values, at_probe=values[:, :1], level=level, log=name not in LINEAR)
                ends = ((found[f"{name}_low"].values.T, found[f"{name}_high"].values.T), (plain.low, plain.high))
                for a, (low, high) in enumerate(ends):
                    inside = (true[name][tested] >= low) & (true[name][tested] <= high)
                    covered[a, b, c, split, tested] = inside
                    width[a, b, c, split] = (high - low) / 2 if name in LINEAR else np.sqrt(high / low)
    dims = ("method", "level", "variable", "scene", "frames", "layer")
    coords = {"method": list(methods), "level": list(LEVELS), "variable": list(VARIABLES), "frames": list(TARGETS)}
    of_tested = np.nanmean(covered[:, :, :, :, CALIBRATION:], axis=3)
    own = np.stack(
        [
            [
                [(t >= a[level][f"{name}_low"].values.T) & (t <= a[level][f"{name}_high"].values.T)
                 for t, a in zip(true[name][CALIBRATION:], alone[CALIBRATION:], strict=True)]
                for name in SHARE
            ]
            for level in LEVELS
        ]
    ).astype(float)  # fmt: skip
    result = xr.Dataset(
        {
            "coverage": (dims, of_tested, {"long_name": "share of splits that cover the scene", "units": "1"}),
            "width": (
                ("method", "level", "variable", "frames", "layer"),
                width.mean(3),
                {"long_name": "half width of the interval: a factor; nats for the entropy", "units": "1"},
            ),
            "own_coverage": (
                ("level", "modelled", "scene", "frames", "layer"),
                own,
                {"long_name": "whether the interval of a single probe covers its own scene", "units": "1"},
            ),
        },
        coords={**coords, "modelled": list(SHARE)},
        attrs={"weights": weights, "scenes": scenes, "seed": seed, "tokens_per_frame": per_frame},
    )
    verdicts = tables(result, true)
    out.parent.mkdir(parents=True, exist_ok=True)
    result.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(result).savefig(out.with_suffix(".png"), dpi=120)
    mean = result["coverage"].mean(("scene", "layer"))
    report(
        verdicts,
        out.with_suffix(".json"),
        coverage={v: mean.sel(variable=v).values.tolist() for v in VARIABLES},
        width={v: result["width"].sel(variable=v).mean("layer").values.tolist() for v in VARIABLES},
        axes=["method", "level", "frames"],
        own_coverage=result["own_coverage"].mean(("scene", "layer")).values.tolist(),
        shares=shares,
        scenes=scenes,
    )


def mean_and_error(coverage: xr.DataArray) -> tuple[float, float]:
    """Mean over scenes and layers, and its standard error with scenes as the independent units."""
    by_scene = coverage.mean("layer").values
    return float(by_scene.mean()), float(by_scene.std(ddof=1) / np.sqrt(by_scene.size))


def tables(result: xr.Dataset, true: dict[str, np.ndarray]) -> list[Verdict]:
    """Print coverage and width; one verdict for each level and number of frames of the claimed variable."""
    heads = [f"{level:.0%}, {frames} frames" for level in LEVELS for frames in TARGETS]
    for method in result["method"].values:
        table = Table("variable", *heads, title=f"coverage (half width), {method}")
        for name in VARIABLES:
            cells = []
            for level in LEVELS:
                for frames in TARGETS:
                    at = {"method": method, "level": level, "variable": name, "frames": frames}
                    cover, error = mean_and_error(result["coverage"].sel(at))
                    cells.append(f"{cover:.2f}±{error:.2f} ({float(result['width'].sel(at).mean()):.2f})")
            table.add_row(name, *cells)
        Console(width=170).print(table)
    table = Table("variable", *heads, title="coverage of the probed scene itself by one probe of two sizes")
    for name in SHARE:
        found = [result["own_coverage"].sel(level=b, modelled=name, frames=c) for b in LEVELS for c in TARGETS]
        table.add_row(name, *("{:.2f}±{:.2f}".format(*mean_and_error(x)) for x in found))
    Console(width=170).print(table)
    layers = Table("layer", *heads, title=f"coverage of {CLAIMED} by layer ± binomial error (half width)")
    for layer in range(result.sizes["layer"]):
        cells = []
        for level in LEVELS:
            for frames in TARGETS:
                at = {"method": "with model error", "level": level, "variable": CLAIMED, "frames": frames}
                cover = float(result["coverage"].sel(at).isel(layer=layer).mean())
                error = np.sqrt(level * (1 - level) / result.sizes["scene"])
                cells.append(f"{cover:.2f}±{error:.2f} ({float(result['width'].sel(at)[layer]):.2f})")
        layers.add_row(str(layer), *cells)
    Console(width=170).print(layers)
    verdicts = []
    for level in LEVELS:
        for frames in TARGETS:
            at = {"method": "with model error", "level": level, "variable": CLAIMED, "frames": frames}
            cover, error = mean_and_error(result["coverage"].sel(at))
            error = max(error, float(np.sqrt(level * (1 - level) / result.sizes["scene"] / result.sizes["layer"])))
            claim = (
                f"coverage of {level:.0%} intervals of the effective rank at {frames} frames is {level:g} within 2 se"
            )
            span = (cover - 2 * error, cover + 2 * error)
            verdicts.append(Verdict(claim, cover, level, span[0] <= level <= span[1], span))
    return verdicts


def figure(result: xr.Dataset) -> Figure:
    """Coverage (left) and width (right) of the claimed variable against the number of frames."""
    fig = Figure(figsize=(10, 4), layout="constrained")
    left, right = fig.subplots(1, 2)
    for level, colour in zip(LEVELS, ("tab:blue", "tab:red"), strict=True):
        left.axhline(level, color=colour, lw=0.8, ls="--")
        for method, style in zip(result["method"].values, ("o-", "x:"), strict=True):
            at = {"method": method, "level": level, "variable": CLAIMED}
            cover = [mean_and_error(result["coverage"].sel(at | {"frames": s})) for s in TARGETS]
            label = f"{level:.0%}, {method}"
            left.errorbar(TARGETS, *zip(*cover, strict=True), fmt=style, color=colour, capsize=3, label=label)
            right.plot(TARGETS, result["width"].sel(at).mean("layer"), style, color=colour, label=label)
    left.set(ylabel="coverage of other scenes (mean over layers)", ylim=(0.4, 1.02), title="dashed: nominal")
    right.set(ylabel="half width, as a factor of the rank", title="width of the interval")
    for ax in (left, right):
        ax.set(xlabel="frames (68 tokens each)", xscale="log")
        ax.set_xticks(TARGETS, [str(s) for s in TARGETS])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    left.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    typer.run(main)
