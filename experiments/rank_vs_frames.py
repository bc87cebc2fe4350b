"""Claim: the finite-N law predicts the effective rank of trained attention at more frames than it was shown.

`python -m experiments.rank_vs_frames [--scenes 8] [--out experiments/results/rank_vs_frames]`. The law is fitted, per
head, to the singular values at 2 and 4 frames, and predicts 8 and 16. Two settings: the scene's own probe, and a probe
of other scenes only (calibrate on one set, predict another). Baselines: nothing changes with N, and a power law (a
straight line in log-log) through the same two probes.
"""

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
from accel.patch import record
from accel.spectra import attention_spectrum
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report
from meanfield import effective_rank, two_probe_law

PROBES, TARGETS = (2, 4), (8, 16)


@torch.no_grad()
def singular_values(model, images: torch.Tensor) -> np.ndarray:
    """All singular values (layer, head, N) of the attention matrices, by dense SVD."""
    found = {}

    def measure(context, q, k, _v):
        generator = torch.Generator().manual_seed(context.layer)
        spectrum = attention_spectrum(q[0], k[0], generator=generator, count=q.shape[2], method="dense")
        found[context.layer] = spectrum["singular_value"].values

    with record(model, measure):
        model(images)
    return np.stack([found[layer] for layer in sorted(found)])


def layer_rank(s: np.ndarray) -> np.ndarray:
    """Mean over heads of the Roy-Vetterli rank, (layer,)."""
    return effective_rank(s).mean(axis=1)


def law_prediction(probes: list[np.ndarray], per_frame: int, frames: int) -> np.ndarray:
    """Effective rank (layer,) at `frames` frames by the law through two probes, mean over heads."""
    small, large = probes
    layers, heads = small.shape[:2]
    values = [
        [
            two_probe_law(small[i, j], PROBES[0] * per_frame, large[i, j], PROBES[1] * per_frame).ranks(
                np.array(float(frames * per_frame))
            )["effective_rank"]
            for j in range(heads)
        ]
        for i in range(layers)
    ]
    return np.array(values, dtype=float).mean(axis=1)


def power_law(ranks: list[np.ndarray], frames: int) -> np.ndarray:
    slope = np.log(ranks[1] / ranks[0]) / np.log(PROBES[1] / PROBES[0])
    return ranks[1] * (frames / PROBES[1]) ** slope


def main(
    weights: Annotated[str, typer.Option()] = "testbed",
    scenes: Annotated[int, typer.Option(min=2)] = 8,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/rank_vs_frames"
    ),
) -> None:
    """Print predicted against measured effective ranks and write the numbers."""
    model = load_model(weights)
    measured: list[dict[int, np.ndarray]] = []
    for scene in track(range(scenes), "measuring"):
        images = sample_batch(held_out_generator(500_000 + scene), 1, max(TARGETS)).images
        measured.append({s: singular_values(model, images[:, :s]) for s in (*PROBES, *TARGETS)})
    per_frame = model.layout(images).tokens_per_frame
    methods = ("own probe", "other scenes' probe", "power law", "unchanged")
    frames = (PROBES[1], *TARGETS)
    values = np.zeros((len(methods), scenes, len(frames), model.config.depth))
    truth = np.zeros((scenes, len(frames), model.config.depth))
    for index, own in enumerate(track(measured, "predicting")):
        others = [m for i, m in enumerate(measured) if i != index]
        mean_of_others = [np.mean([m[s] for m in others], axis=0) for s in PROBES]
        own_ranks = [layer_rank(own[s]) for s in PROBES]
        for column, count in enumerate(frames):
            truth[index, column] = layer_rank(own[count])
            values[0, index, column] = law_prediction([own[s] for s in PROBES], per_frame, count)
            values[1, index, column] = law_prediction(mean_of_others, per_frame, count)
            values[2, index, column] = power_law(own_ranks, count)
            values[3, index, column] = own_ranks[1]

    data = xr.Dataset(
        {
            "predicted": (("predictor", "scene", "frames", "layer"), values),
            "measured": (("scene", "frames", "layer"), truth),
        },
        coords={"predictor": list(methods), "frames": list(frames)},
        attrs={"weights": weights, "probes": str(PROBES), "tokens_per_frame": per_frame},
    )
    table = Table("layer", *(f"{s} frames" for s in frames), title="effective rank: measured / own probe / other probe")
    for layer in range(model.config.depth):
        cells = [
            " / ".join(f"{x:.0f}" for x in (truth[:, c, layer].mean(), *values[:2, :, c, layer].mean(1)))
            for c in range(len(frames))
        ]
        table.add_row(str(layer), *cells)
    Console().print(table)
    error = np.abs(values / truth - 1)
    summary = Table("method", *(f"{s} frames" for s in frames), title="median relative error (median ratio)")
    for i, method in enumerate(methods):
        ratio = np.median(values[i] / truth, axis=(0, 2))
        median = np.median(error[i], axis=(0, 2))
        summary.add_row(method, *(f"{m:.3f} ({r:.2f})" for m, r in zip(median, ratio, strict=True)))
    Console().print(summary)
    out.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(data).savefig(out.with_suffix(".png"), dpi=120)
    medians = {m: np.median(error[i], axis=(0, 2)).tolist() for i, m in enumerate(methods)}
    last = {m: medians[m][-1] for m in methods}
    verdicts = [
        Verdict(
            f"median error at {TARGETS[1]} frames, {method}, below both baselines",
            last[method],
            min(last["power law"], last["unchanged"]),
            last[method] < min(last["power law"], last["unchanged"]),
        )
        for method in methods[:2]
    ]
    report(verdicts, out.with_suffix(".json"), frames=frames, median_relative_error=medians, scenes=scenes)


def figure(data: xr.Dataset) -> Figure:
    """Effective rank per layer, one panel for each number of frames; means over scenes."""
    fig = Figure(figsize=(12, 4), layout="constrained")
    for ax, count in zip(fig.subplots(1, data.sizes["frames"]), data["frames"].values, strict=True):
        now = data.sel(frames=count).mean("scene")
        ax.plot(now["measured"], "ko-", label="measured")
        for name, style in zip(data["predictor"].values, ("-", "--", ":", "-."), strict=True):
            ax.plot(now["predicted"].sel(predictor=name), style, label=str(name))
        ax.set(title=f"{count} frames", xlabel="layer", ylabel="effective rank of attention")
    ax.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    typer.run(main)
