"""Does the error of every policy follow from formulas?

(a) The same images: the formulas of `meanfield.reductions`, evaluated on a few queries of each layer, against the error
of the layer's attention output when the policy is carried out. Claim for every policy: Spearman >= .9 over layers,
strengths and scenes, median factor <= 1.5, at 8 and at 16 frames, with nothing fitted.
(b) The planner's case: formulas on a probe of the first 4 frames, carried to 8 and 16. Claim: closer than "what the
probe measured" (median factor).

The formulas were chosen on the scenes DEVELOPMENT, the numbers are of other ones, FINAL.
Run: python -m experiments.policy_errors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer
import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

from accel.error_terms import Rows, error_terms, few_queries
from accel.layout import TokenLayout
from accel.models.checkpoint import load_model
from accel.patch import record
from accel.policies import BlockSparse, Context, Frame, PhasedGrid, Policy, Subsample, TemporalStride
from accel.policies.compose import Compose
from accel.policies.merge import Merge
from accel.policies.query_merge import QueryMerge
from accel.predictors import ClassStatistics, ConstantPredictor, TheoryPredictor
from accel.profile import probe
from accel.provenance import provenance
from accel.sites import sites
from accel.statistics import option_errors, query_statistics, sample_queries
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DEVELOPMENT, FINAL = 710_000, 720_000  # first held-out scenes of the two sets
PROBE, SIZES = 4, (8, 16)
QUERIES = 64  # per head, for the formulas
PREDICTORS = (TheoryPredictor(calibrated=False), TheoryPredictor(), ConstantPredictor())
SMALL = {"query_block": 16, "key_block": 8}  # of the testbed's 64 patches per frame
POLICIES: dict[str, tuple[Policy, ...]] = {
    "frame": (Frame(),),
    "subsample": (
        *(Subsample(stride=s, fill=fill) for fill in ("none", "shrink") for s in (2, 4, 16)),
        *(Subsample(stride=s, fill="mass") for s in (2, 8)),
        Subsample(stride=4, fill="count"),
        *(Subsample.avggt(s) for s in (2, 4, 9)),
    ),
    "temporal stride": (
        *(TemporalStride(s) for s in (2, 3)),
        *(TemporalStride(s, own_key=False, fill="none") for s in (2, 3)),
    ),
    "phased grid": (*(PhasedGrid(t) for t in (2, 3, 4)), *(PhasedGrid.regime(s) for s in (1.3, 1.5, 1.7))),
    "merge": (
        *(Merge(keep=x) for x in (0.35, 0.5, 0.7)),
        *(Merge(keep=x, correct=False) for x in (0.35, 0.7)),
        Merge(keep=0.5, mass=False, correct=False),
        Merge(keep=0.35, per_head=True),
        Merge.fastvggt(),
    ),
    "query merge": (
        *(QueryMerge(keep=x) for x in (0.35, 0.5, 0.7)),
        *(QueryMerge(keep=x, correct=False) for x in (0.35, 0.7)),
    ),
    "block sparse": (
        *(BlockSparse(density=d, fill="none", order="raster", **SMALL) for d in (0.1, 0.25, 0.5)),
        BlockSparse(density=0.8, threshold=0.8, floor=0.1, fill="none", order="raster", **SMALL),
        *(BlockSparse(density=d, **SMALL) for d in (0.2, 0.35, 0.5)),
        BlockSparse(density=0.35, fill="cumulant", **SMALL),
        BlockSparse(density=0.35, query_block=64, key_block=32),
    ),
    "compose": (
        *(Compose((Merge(keep=x), Subsample(stride=4, fill="mass"))) for x in (0.5, 0.7)),
        Compose((Merge(keep=0.5), PhasedGrid(2))),
        Compose((Merge.fastvggt(), PhasedGrid.regime(1.5))),
        *(Compose((QueryMerge(keep=0.6), Subsample(stride=s, fill="published"))) for s in (4, 9)),
        Compose((QueryMerge(keep=0.5, correct=False), TemporalStride(2, own_key=False))),
    ),
}
OPTIONS = tuple(policy for strengths in POLICIES.values() for policy in strengths)
FAMILY = np.array([name for name, strengths in POLICIES.items() for _ in strengths])


def same_images(model: nn.Module, images: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors by formula and carried out, each (layer, option), on the exact model's q, k, v of these images."""
    layout = model.layout(images)
    index = sample_queries(layout, 4 * QUERIES, torch.Generator().manual_seed(seed))
    few = few_queries(layout, index, per_frame=max(1, QUERIES // layout.frames))
    guess, truth = np.zeros((2, len(sites(model)), len(OPTIONS)))

    def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
        truth[context.layer] = option_errors(q, k, v, layout, OPTIONS, context=context)
        statistics = layer_statistics(q, k, v, layout, index, few)
        rows = Rows(q, k, v, layout, few, context)
        guess[context.layer] = [statistics.error(policy, error_terms(policy, rows)) for policy in OPTIONS]

    with torch.no_grad(), record(model, measure):
        model(images)
    return guess, truth


def layer_statistics(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, index: Tensor, few: Tensor):
    """Class statistics of one layer at its own number of frames."""
    found = {name: x.numpy() for name, x in query_statistics(q[0], k[0], v[0], layout, index).items()}
    first, term_first = ((x < layout.tokens_per_frame).numpy() for x in (index, few))
    mean_key = np.exp(found.pop("patch_logit"))
    return ClassStatistics(layout=layout, **found, mean_key=mean_key, in_first=first, term_in_first=term_first)


def compare(model: nn.Module, scene: int) -> dict[str, np.ndarray]:
    """All errors of one scene, by name: (sizes, layer, option)."""
    images = sample_batch(held_out_generator(scene), 1, max(SIZES)).images
    generator = torch.Generator().manual_seed(scene)
    profile = probe(model, images, frames=PROBE, options=OPTIONS, generator=generator, progress=False)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("formula", "measured")}
    found |= {predictor.name: [] for predictor in PREDICTORS}
    for size in SIZES:
        guess, truth = same_images(model, images[:, :size], scene)
        found["formula"].append(guess)
        found["measured"].append(truth)
        for predictor in PREDICTORS:
            found[predictor.name].append(predictor(profile, model.layout(images[:, :size]), OPTIONS))
    return {name: np.stack(values) for name, values in found.items()}


def agreement(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Spearman's rank correlation, median factor, median ratio and the factor that 90 % are within."""
    log = np.log(guess / truth).ravel()
    return {
        "spearman": float(spearmanr(guess.ravel(), truth.ravel())[0]),
        "factor": float(np.exp(np.median(np.abs(log)))),
        "ratio": float(np.exp(np.median(log))),
        "within_90": float(np.exp(np.quantile(np.abs(log), 0.9))),
    }


def scatter(data: dict[str, np.ndarray], out: Path) -> None:
    """Predicted against measured errors, every layer, strength and scene."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharex=True, sharey=True)
    panels = (("formula", "same images, nothing fitted"), ("theory", f"probe of {PROBE} frames, carried to 8 and 16"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for family in POLICIES:
            columns = family == FAMILY
            axis.loglog(
                data["measured"][..., columns].ravel(),
                data[name][..., columns].ravel(),
                ".",
                ms=3,
                alpha=0.5,
                label=family,
            )
        span = np.array([data["measured"].min(), data["measured"].max()])
        for factor, style in ((1, "-"), (1.5, ":"), (1 / 1.5, ":")):
            axis.loglog(span, factor * span, "k" + style, lw=0.8)
        axis.set(title=title, xlabel="measured relative error of the attention output", ylabel="predicted")
    axes[0].legend(markerscale=3, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main(
    weights: Annotated[str, typer.Option(help="testbed, a hub id or a checkpoint.")] = "testbed",
    scenes: Annotated[int, typer.Option(min=1)] = 6,
    development: Annotated[bool, typer.Option(help="The scenes on which formulas were chosen.")] = False,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/policy_errors"
    ),
) -> None:
    """Print how well formulas give the error of every policy, on the same images and from a probe of 4 frames."""
    model, first = load_model(weights), DEVELOPMENT if development else FINAL
    found = [compare(model, first + scene) for scene in track(range(scenes), "scenes")]
    data = {name: np.stack([scene[name] for scene in found]) for name in found[0]}
    table = Table(title=f"errors by formula against measured, {scenes} scenes, same images")
    for column in ("policy", "frames", "Spearman", "median factor", "median ratio", "90 % within", "worst strength"):
        table.add_column(column)
    same: dict[str, dict[str, float]] = {}
    verdicts, strengths = [], {}
    for policy in OPTIONS:
        column = OPTIONS.index(policy)
        strengths[str(policy)] = agreement(data["formula"][..., column], data["measured"][..., column])
    for family in POLICIES:
        columns = family == FAMILY
        worst = max(strengths[str(p)]["factor"] for p in POLICIES[family])
        each = []
        for i, size in enumerate(SIZES):
            row = agreement(data["formula"][:, i][..., columns], data["measured"][:, i][..., columns])
            same[f"{family}, {size}"] = row
            each.append(row)
            table.add_row(family, str(size), *(f"{x:.3f}" for x in row.values()), f"{worst:.3f}")
        rho, factor = min(row["spearman"] for row in each), max(row["factor"] for row in each)
        verdicts += [
            Verdict(f"{family}: Spearman at 8 and at 16 frames at least .9", rho, 0.9, rho >= 0.9),
            Verdict(f"{family}: median factor at 8 and at 16 frames at most 1.5", factor, 1.5, factor <= 1.5),
        ]
    worst = max(row["factor"] for row in strengths.values())
    verdicts.append(Verdict("median factor of every single strength at most 1.5", worst, 1.5, worst <= 1.5))
    everything = agreement(data["formula"], data["measured"])
    verdicts.append(Verdict("all policies: Spearman", everything["spearman"], 0.9, everything["spearman"] >= 0.9))
    Console(width=120).print(table)

    table = Table(title=f"from a probe of {PROBE} frames")
    for column in ("policy", "frames", *(f"{p.name}: {what}" for p in PREDICTORS for what in ("Spearman", "factor"))):
        table.add_column(column)
    carried: dict[str, dict[str, float]] = {}
    for i, size in enumerate(SIZES):
        for family in (*POLICIES, "all"):
            columns = (family == FAMILY) | (family == "all")
            cells = []
            for predictor in PREDICTORS:
                row = agreement(data[predictor.name][:, i][..., columns], data["measured"][:, i][..., columns])
                carried[f"{predictor.name}, {family}, {size}"] = row
                cells += [f"{row['spearman']:.3f}", f"{row['factor']:.3f}"]
            table.add_row(family, str(size), *cells)
    Console(width=150).print(table)
    for size in SIZES:
        constant = carried[f"constant, all, {size}"]["factor"]
        for predictor in PREDICTORS[:2]:
            mine = carried[f"{predictor.name}, all, {size}"]["factor"]
            claim = f"{predictor.name} from {PROBE} frames to {size}: median factor below the constant's"
            verdicts.append(Verdict(claim, mine, constant, mine < constant))

    out.parent.mkdir(parents=True, exist_ok=True)
    dims = ("scene", "frames", "layer", "option")
    arrays = {name.replace(" ", "_"): (dims, values) for name, values in data.items()}
    for name, (_, values) in arrays.items():
        arrays[name] = (dims, values, {"long_name": f"relative rms error, {name}", "units": "1"})
    coords = {"scene": first + np.arange(scenes), "frames": list(SIZES), "option": [str(p) for p in OPTIONS]}
    dataset = xr.Dataset(arrays, coords=coords | {"policy": ("option", FAMILY)}, attrs=provenance())
    dataset.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    scatter(data, out.with_suffix(".png"))
    report(
        verdicts,
        out.with_suffix(".json"),
        same_images=same,
        every_strength=strengths,
        from_probe=carried,
        scenes=[first, first + scenes - 1],
        development_scenes=[DEVELOPMENT, DEVELOPMENT + 3],
    )


if __name__ == "__main__":
    typer.run(main)
