"""Claim: the planned testbed's time grows nearly linearly with the frames where the dense one's grows quadratically.

`python -m experiments.speed_vs_frames [--frames 4,8,16,32,64,128,256] [--tolerance 0.03,0.1]`. One held-out scene for
each number of frames; the plan comes from a probe of 4 frames. Dense forwards, planned ones (a plan for each tolerance)
and the floor, in which every global layer is frame attention, are timed in turn in one process and their medians
compared; of each also the seconds spent in global attention alone. Growth exponents are slopes of log seconds against
log N between the two largest numbers of frames. Seconds depend on the machine and its load; what counts is ratios.
"""

import math
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from accel import Device, TheoryPredictor, load_model, plan, probe
from accel.models.pose import decode_pose
from accel.outputs import output_difference
from accel.patch import patch
from accel.policies import Frame
from accel.schedule import exact_schedule
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.metrics import pose_auc, pose_errors
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report


@torch.no_grad()
def timed(model, images, schedule) -> tuple[dict, float, float]:
    """A prediction, its seconds, and those of them in global attention."""
    attention = 0.0

    def attend(policy, q, k, v, *, scale, context):
        nonlocal attention
        start = time.perf_counter()
        out = policy.attend(q, k, v, schedule.layout, scale=scale, context=context)
        attention += time.perf_counter() - start
        return out

    start = time.perf_counter()
    with patch(model, schedule, attend=attend):
        out = model(images)
    return out, time.perf_counter() - start, attention


def auc(out: dict, batch) -> float:
    """AUC@30 of the predicted poses."""
    extrinsics, _ = decode_pose(out["pose_enc"], *batch.images.shape[-2:])
    return pose_auc(*pose_errors(extrinsics, batch.extrinsics)).item()


def measure(model, device: Device, count: int, tolerances: list[float], repeats: int) -> list[dict]:
    """One row for dense, the floor and each tolerance at this number of frames."""
    batch = sample_batch(held_out_generator(700_000 + count), 1, count)
    profile = probe(model, batch.images, generator=torch.Generator().manual_seed(0), progress=False)
    layout = model.layout(batch.images)
    schedules = {"dense": exact_schedule(layout, profile.layers)}
    for tolerance in tolerances:
        schedules[f"planned {tolerance:g}"] = plan(
            profile, layout, predictor=TheoryPredictor(), tolerance=tolerance, device=device
        )
    schedules["floor"] = SimpleNamespace(layout=layout, policies=(Frame(),) * profile.layers)
    runs, names = {name: [] for name in schedules}, list(schedules)
    timed(model, batch.images, schedules["floor"])  # the first forward in a process is slower
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(timed(model, batch.images, schedules[name]))
    exact, rows = runs["dense"][0][0], []
    for name, schedule in schedules.items():
        total, attention = (statistics.median(run[i] for run in runs[name]) for i in (1, 2))
        out = runs[name][0][0]
        rows.append(
            {
                "name": name,
                "frames": count,
                "tokens": layout.tokens,
                "seconds": total,
                "attention_seconds": attention,
                "ratio": rows[0]["seconds"] / total if rows else 1.0,
                "predicted_ratio": getattr(schedule, "predicted_speedup", None),
                "difference": output_difference(exact, out)["total"],
                "predicted_difference": getattr(schedule, "predicted_total", None),
                "auc30": auc(out, batch),
                "policies": [p.describe() for p in schedule.policies],
            }
        )
    return rows


def exponent(rows: list[dict], name: str, key: str) -> float:
    """Slope of log seconds against log N between the two largest numbers of frames."""
    a, b = sorted((row for row in rows if row["name"] == name), key=lambda row: row["tokens"])[-2:]
    return math.log(b[key] / a[key]) / math.log(b["tokens"] / a["tokens"])


def main(
    weights: Annotated[str, typer.Option()] = "testbed",
    frames: Annotated[str, typer.Option(help="Numbers of frames, separated by commas.")] = "4,8,16,32,64,128,256",
    tolerance: Annotated[str, typer.Option(help="Output differences to plan for, separated by commas.")] = "0.03,0.1",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    out: Annotated[Path, typer.Option()] = Path("experiments/results/speed_vs_frames.json"),
) -> None:
    """Print seconds, growth exponents, output differences and pose accuracy."""
    model = load_model(weights)
    device = Device.measure("cpu", config=model.config)
    tolerances = [float(x) for x in tolerance.split(",")]
    columns = ("frames", "N", "run", "seconds", "attention", "ratio", "predicted", "difference", "predicted", "AUC@30")
    table, rows = Table(*columns, title=f"{torch.get_num_threads()} threads"), []
    for count in map(int, frames.split(",")):
        for row in measure(model, device, count, tolerances, repeats):
            rows.append(row)
            predicted = [row[name] for name in ("predicted_ratio", "predicted_difference")]
            table.add_row(
                *(str(row[name]) for name in ("frames", "tokens", "name")),
                *(f"{row[name]:.3f}" for name in ("seconds", "attention_seconds")),
                f"{row['ratio']:.2f}",
                "-" if predicted[0] is None else f"{predicted[0]:.2f}",
                f"{row['difference']:.4f}",
                "-" if predicted[1] is None else f"{predicted[1]:.4f}",
                f"{row['auc30']:.3f}",
            )
    Console(width=130).print(table)
    last = [row for row in rows if row["frames"] == rows[-1]["frames"]]
    exponents = {
        row["name"]: {key: exponent(rows, row["name"], key) for key in ("seconds", "attention_seconds")}
        for row in last
        if len({row["frames"] for row in rows}) > 1
    }
    verdicts = []
    for row in last[1:-1]:
        name, limit, count = row["name"], float(row["name"].split()[1]), row["frames"]
        verdicts.append(Verdict(f"dense over {name} seconds at {count} frames", row["ratio"], 1.5, row["ratio"] >= 1.5))
        claim = f"output difference of {name} at {count} frames within the tolerance"
        verdicts.append(Verdict(claim, row["difference"], limit, row["difference"] <= limit))
    for name, found in exponents.items():
        grows = found["attention_seconds"]
        if name == "dense":
            verdicts.append(Verdict("growth exponent of dense attention seconds, 2 expected", grows, 1.8, grows >= 1.8))
        else:
            total = found["seconds"]
            verdicts.append(Verdict(f"growth exponent of {name} seconds, near 1", total, 1.25, total <= 1.25))
    report(verdicts, out, rows=rows, exponents=exponents, device=device.to_dict())


if __name__ == "__main__":
    typer.run(main)
