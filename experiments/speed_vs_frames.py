"""Claim: where global attention dominates, the planned testbed is faster than the dense one at the error asked for.

`python -m experiments.speed_vs_frames [--frames 16,64,128,256] [--tolerance 0.03]`. One held-out scene for each number
of frames; the plan comes from a probe of 4 frames; dense and planned forwards are timed in turn in one process and
their medians compared. Seconds depend on the machine and its load: the ratio is the result.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from accel import Device, TheoryPredictor, load_model, plan, probe, validate
from accel.models.pose import decode_pose
from accel.patch import patch
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.metrics import pose_auc, pose_errors
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report


@torch.no_grad()
def accuracy(model, batch, schedule=None) -> float:
    """AUC@30 of the dense model, or of the planned one."""
    if schedule is None:
        out = model(batch.images)
    else:
        with patch(model, schedule):
            out = model(batch.images)
    extrinsics, _ = decode_pose(out["pose_enc"], *batch.images.shape[-2:])
    return pose_auc(*pose_errors(extrinsics, batch.extrinsics)).item()


def main(
    weights: Annotated[str, typer.Option()] = "testbed",
    frames: Annotated[str, typer.Option(help="Numbers of frames, separated by commas.")] = "16,64,128,256",
    tolerance: Annotated[float, typer.Option(min=0.0)] = 0.03,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    out: Annotated[Path, typer.Option()] = Path("experiments/results/speed_vs_frames.json"),
) -> None:
    """Print dense against planned seconds, error and pose accuracy."""
    model = load_model(weights)
    device = Device.measure("cpu", config=model.config)
    columns = ("frames", "tokens", "dense s", "planned s", "ratio", "predicted", "difference", "predicted", "AUC@30")
    table, rows = Table(*columns, title=f"tolerance {tolerance:g}, {torch.get_num_threads()} threads"), []
    for count in map(int, frames.split(",")):
        batch = sample_batch(held_out_generator(700_000 + count), 1, count)
        profile = probe(model, batch.images, generator=torch.Generator().manual_seed(0), progress=False)
        layout = model.layout(batch.images)
        schedule = plan(profile, layout, predictor=TheoryPredictor(), tolerance=tolerance, device=device)
        found = validate(model, batch.images, schedule, repeats=repeats, progress=False)
        dense, planned = (float(found[f"measured_seconds_{name}"]) for name in ("dense", "planned"))
        row = {
            "frames": count,
            "tokens": layout.tokens,
            "dense_s": dense,
            "planned_s": planned,
            "ratio": dense / planned,
            "predicted_ratio": schedule.predicted_speedup,
            "difference": float(found["measured_total"]),
            "predicted_difference": schedule.predicted_total,
            "auc30_dense": accuracy(model, batch),
            "auc30_planned": accuracy(model, batch, schedule),
            "policies": [p.describe() for p in schedule.policies],
        }
        rows.append(row)
        table.add_row(
            *(f"{row[name]:.{digits}f}" for name, digits in (("frames", 0), ("tokens", 0), ("dense_s", 2))),
            f"{planned:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['predicted_ratio']:.2f}",
            f"{row['difference']:.4f}",
            f"{row['predicted_difference']:.4f}",
            f"{row['auc30_dense']:.3f} -> {row['auc30_planned']:.3f}",
        )
    Console(width=120).print(table)
    last = rows[-1]
    verdicts = [
        Verdict(f"dense over planned seconds at {last['frames']} frames", last["ratio"], 1.5, last["ratio"] >= 1.5),
        Verdict(
            f"output difference at {last['frames']} frames within the tolerance asked for",
            last["difference"],
            tolerance,
            last["difference"] <= tolerance,
        ),
    ]
    report(verdicts, out, rows=rows, device=device.to_dict())


if __name__ == "__main__":
    typer.run(main)
