"""Evaluate the testbed on held-out scenes: `python -m experiments.testbed.evaluate [--control WEIGHTS]`.

Rows: the network, the step-matched control whose global blocks see one frame each, and the mean predictor (identity
pose, mean depth map of the training distribution). Scenes are drawn from seeds that training never uses.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accel.models import VGGT, load_model
from accel.models.pose import decode_pose
from accel.patch import patch
from accel.policies import Frame
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.metrics import (
    depth_error,
    identity_poses,
    mean_and_error,
    mean_depth_map,
    pose_auc,
    pose_errors,
)
from experiments.testbed.scenes import Batch, sample_batch

SCENES_PER_BATCH = 4


def held_out(scenes: int, frames: int):
    """Batches of full-motion scenes with full-resolution depth."""
    for index in range(scenes // SCENES_PER_BATCH):
        yield sample_batch(held_out_generator(1000 * frames + index), SCENES_PER_BATCH, frames, full_depth=True)


@torch.no_grad()
def predict(model: VGGT, batch: Batch, control: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Extrinsics (B, S, 3, 4) and depth (B, S, H, W)."""
    if control:
        # as the control was trained: each global layer sees the query's own frame, by its own weights
        schedule = SimpleNamespace(layout=model.layout(batch.images), policies=(Frame(),) * model.config.depth)
        with patch(model, schedule):
            out = model(batch.images)
    else:
        out = model(batch.images)
    extrinsics, _ = decode_pose(out["pose_enc"], *batch.images.shape[-2:])
    return extrinsics, out["depth"][..., 0]


def training_mean_depth() -> torch.Tensor:
    batch = sample_batch(torch.Generator().manual_seed(1), 64, 4, full_depth=True)
    return mean_depth_map(batch.full_depth)


def evaluate(models: dict[str, VGGT | None], scenes: int, frames: int) -> dict[str, dict[str, float]]:
    """Metrics of each model at one number of frames; `None` stands for the mean predictor.

    Rotation and translation direction: medians over pairs of frames, degrees. AUC@30 and the depth error |d^-d|/d:
    means over scenes with standard errors.
    """
    mean_depth = training_mean_depth()
    errors = {name: ([], [], [], []) for name in models}
    for batch in track(list(held_out(scenes, frames)), f"{frames} frames"):
        for name, model in models.items():
            if model is None:
                extrinsics = identity_poses(*batch.images.shape[:2])
                depth = mean_depth.expand_as(batch.full_depth)
            else:
                extrinsics, depth = predict(model, batch, control=name == "control")
            rotation, translation = pose_errors(extrinsics, batch.extrinsics)
            rows = (rotation, translation, pose_auc(rotation, translation), depth_error(depth, batch.full_depth))
            for sink, values in zip(errors[name], rows, strict=True):
                sink.append(values)
    results = {}
    for name, columns in errors.items():
        rotation, translation, auc, depth = (torch.cat(c) for c in columns)
        results[name] = {
            "rotation_deg": rotation.median().item(),
            "translation_deg": translation.median().item(),
            "auc30": mean_and_error(auc)[0],
            "auc30_se": mean_and_error(auc)[1],
            "depth_abs_rel": mean_and_error(depth)[0],
            "depth_abs_rel_se": mean_and_error(depth)[1],
        }
    return results


def main(
    weights: Annotated[str, typer.Option(help='"testbed" or a file.')] = "testbed",
    control: Annotated[Path | None, typer.Option(help="Weights trained with --no-global-attention.")] = None,
    frames: Annotated[str, typer.Option(help="Numbers of frames, separated by commas.")] = "2,4,8,16",
    scenes: Annotated[int, typer.Option(min=SCENES_PER_BATCH)] = 100,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Print AUC@30 and depth error of the testbed, its control and the mean predictor."""
    models = {"testbed": load_model(weights)}
    if control is not None:
        models["control"] = load_model(control)
    models["mean predictor"] = None
    table = Table("frames", "model", "rotation", "translation", "AUC@30", "depth abs-rel", title=f"{scenes} scenes")
    results = {}
    for count in map(int, frames.split(",")):
        results[count] = evaluate(models, scenes, count)
        for name, row in results[count].items():
            table.add_row(
                str(count),
                name,
                f"{row['rotation_deg']:.1f} deg",
                f"{row['translation_deg']:.1f} deg",
                f"{row['auc30']:.3f} +- {row['auc30_se']:.3f}",
                f"{row['depth_abs_rel']:.3f} +- {row['depth_abs_rel_se']:.3f}",
            )
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps({"scenes": scenes, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
