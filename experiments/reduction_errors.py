"""Do errors of cheaper attention at 8 and 16 frames follow from a probe of 4?

Claim: the calibrated theory predicts the relative error of each layer's attention output, for every option of the
planner, closer (median factor) than "what the probe measured". Run: python -m experiments.reduction_errors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from accel.models.checkpoint import load_model
from accel.options import default_options
from accel.predictors import ConstantPredictor, OraclePredictor, TheoryPredictor
from accel.profile import probe
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

SIZES = (4, 8, 16)
PREDICTORS = (TheoryPredictor(), TheoryPredictor(calibrated=False), ConstantPredictor())


def compare(model: torch.nn.Module, seed: int, frames: int) -> dict[str, np.ndarray]:
    """Predicted and measured errors of one scene, by name: (sizes, layer, option), sizes 4, 8 and 16 frames."""
    images = sample_batch(held_out_generator(600_000 + seed), 1, max(SIZES)).images
    options = default_options(model.layout(images[:, :frames]))
    profile = probe(
        model, images, frames=frames, options=options, generator=torch.Generator().manual_seed(seed), progress=False
    )
    found: dict[str, list[np.ndarray]] = {predictor.name: [] for predictor in PREDICTORS} | {"measured": []}
    kept = [policy for policy in options if policy.name != "exact"]
    for size in SIZES:
        layout = model.layout(images[:, :size])
        found["measured"].append(OraclePredictor(model, images[:, :size])(None, layout, kept))
        for predictor in PREDICTORS:
            found[predictor.name].append(predictor(profile, layout, kept))
    return {name: np.stack(values) for name, values in found.items()}


def main(
    weights: Annotated[str, typer.Option(help="testbed, a hub id or a checkpoint.")] = "testbed",
    scenes: Annotated[int, typer.Option(min=1)] = 6,
    frames: Annotated[int, typer.Option(min=3, help="Of the probe.")] = 4,
    out: Annotated[Path, typer.Option(help="Prefix of the .json and .nc files.")] = Path(
        "experiments/results/reduction_errors"
    ),
) -> None:
    """Print how well each predictor carries the errors of a probe to 8 and 16 frames."""
    model = load_model(weights)
    found = [compare(model, scene, frames) for scene in track(range(scenes), "scenes")]
    data = {name: np.stack([scene[name] for scene in found]) for name in found[0]}
    columns = ("frames", "predictor", "Spearman", "median ratio", "median factor", "90 % within")
    table, factors = Table(*columns, title=f"attention errors, probe of {frames} frames, {scenes} scenes"), {}
    for i, size in enumerate(SIZES):
        truth = data["measured"][:, i]
        for predictor in PREDICTORS:
            guess = data[predictor.name][:, i]
            log = np.log(guess / truth)
            rho = np.median([spearmanr(g.ravel(), t.ravel())[0] for g, t in zip(guess, truth, strict=True)])
            factors[f"{predictor.name}, {size}"] = float(np.exp(np.median(np.abs(log))))
            row = (
                rho,
                np.exp(np.median(log)),
                factors[f"{predictor.name}, {size}"],
                np.exp(np.quantile(abs(log), 0.9)),
            )
            table.add_row(str(size), predictor.name, *(f"{x:.3f}" for x in row))
    Console(width=120).print(table)
    theory, constant = (np.mean([factors[f"{name}, {size}"] for size in SIZES[1:]]) for name in ("theory", "constant"))
    out.parent.mkdir(parents=True, exist_ok=True)
    dims = ("scene", "frames", "layer", "option")
    arrays = {name.replace(" ", "_"): (dims, values) for name, values in data.items()}
    xr.Dataset(arrays, coords={"frames": list(SIZES)}).to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    claim = f"median factor of the calibrated theory at {SIZES[1]} and {SIZES[2]} frames below the constant's"
    verdict = Verdict(claim, float(theory), float(constant), bool(theory < constant))
    report([verdict], out.with_suffix(".json"), median_factor=factors, scenes=scenes)


if __name__ == "__main__":
    typer.run(main)
