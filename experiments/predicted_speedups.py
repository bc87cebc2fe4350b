"""Claim: planned VGGT-1B is 2.5, 6, 12 and 27 times as fast as dense at 100, 300, 800 and 1,000 frames, within 1.5 of
the floor.

`python -m experiments.predicted_speedups [--gpu H100,H20] [--frames 100,300,500,800,1000]`. Nothing is run on a GPU:
every second is predicted by the cost model with the rates of `accel.devices`, for photographs of 392 x 518 pixels
(1,041 tokens per frame). Errors are those that the testbed's probe predicts at so many frames, its layers mapped to 24
by relative depth (`accel.bench.reference`): the frontier of speed against this error, the published settings and the
floor (every global layer as frame attention), for the whole model and for the trunk without its heads.
"""

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import typer
from rich.console import Console
from rich.table import Table

from accel.bench.reference import BASIS, reference_schedule, testbed_profile
from accel.cost import Device, predict_seconds
from accel.devices import device_named
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models import VGGT_1B
from accel.policies import Frame, Policy
from accel.presets import PUBLISHED, published_schedule
from experiments.verdict import Verdict, report

TARGETS = {100: 2.5, 300: 6.0, 800: 12.0, 1000: 27.0}
OVER_FLOOR = 1.5
ACCEPTABLE = 0.1
"""Predicted output difference up to which a plan counts for the claim."""
TOLERANCES = (0.02, 0.05, 0.1, 0.2, 0.4)


def seconds(layout: TokenLayout, device: Device, policies: tuple[Policy, ...] | None) -> dict[str, float]:
    """Predicted seconds by part, "total" and "trunk" (without the heads)."""
    found = predict_seconds(VGGT_1B, layout, device, policies, frames_per_chunk=8)
    return found | {"trunk": found["total"] - found["heads"]}


def rows(profile, gpu: str, frames: int) -> list[dict]:
    """Dense, floor, published settings and plans on one GPU at one number of frames."""
    device, layout = device_named(gpu), TokenLayout(frames, VGGT_1B.special_tokens, 28, 37)
    settings: dict[str, tuple] = {"dense": (None, 0.0), "floor": ((Frame(),) * VGGT_1B.depth, None)}
    for name in PUBLISHED:
        settings[name] = published_schedule(name, layout, VGGT_1B.depth).policies, None
    for tolerance in TOLERANCES:
        try:
            schedule = reference_schedule(profile, VGGT_1B, layout, tolerance, device)
        except AccelError as error:
            print(f"{gpu}, {frames} frames, tolerance {tolerance:g}: {error}")
            continue
        settings[f"plan {tolerance:g}"] = schedule.policies, schedule.predicted_total
    times = {name: seconds(layout, device, policies) for name, (policies, _) in settings.items()}
    return [
        {
            "gpu": gpu,
            "frames": frames,
            "name": name,
            "seconds": times[name],
            "ratio": times["dense"]["total"] / times[name]["total"],
            "trunk_ratio": times["dense"]["trunk"] / times[name]["trunk"],
            "over_floor": times[name]["total"] / times["floor"]["total"],
            "predicted_difference": error,
            "policies": None if policies is None else [p.describe() for p in policies],
        }
        for name, (policies, error) in settings.items()
    ]


def figure(found: list[dict], path: Path) -> None:
    """Predicted speed-up against frames, a panel per GPU."""
    gpus = list(dict.fromkeys(row["gpu"] for row in found))
    drawing, panels = plt.subplots(1, len(gpus), figsize=(5.2 * len(gpus), 4.4), sharey=True, squeeze=False)
    for panel, gpu in zip(panels[0], gpus, strict=True):
        names = [name for name in dict.fromkeys(row["name"] for row in found) if name != "dense"]
        for name in names:
            own = [row for row in found if row["gpu"] == gpu and row["name"] == name]
            style = "k:" if name == "floor" else "-o" if name.startswith("plan") else "--"
            panel.plot([r["frames"] for r in own], [r["ratio"] for r in own], style, label=name, markersize=3)
        panel.plot(list(TARGETS), list(TARGETS.values()), "kx", label="asked for")
        panel.set(title=f"{gpu}, predicted", xlabel="frames of 1,041 tokens", yscale="log")
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("dense over this, whole model")
    panels[0, -1].legend(fontsize=7)
    drawing.tight_layout()
    drawing.savefig(path, dpi=130)


def main(
    gpu: Annotated[str, typer.Option(help="GPUs of accel.devices, separated by commas.")] = "H100,A100,H20",
    frames: Annotated[str, typer.Option(help="Numbers of frames, separated by commas.")] = "100,300,500,800,1000",
    out: Annotated[Path, typer.Option()] = Path("experiments/results/predicted_speedups.json"),
) -> None:
    """Print predicted seconds and ratios, and the best plan of acceptable error beside what was asked for."""
    profile = testbed_profile()
    places = [(name, count) for name in gpu.split(",") for count in map(int, frames.split(","))]
    found = [row for name, count in places for row in rows(profile, name, count)]
    columns = (
        "GPU",
        "frames",
        "setting",
        "s",
        "trunk",
        "ratio",
        "trunk",
        "/ floor",
        "testbed's error",
        "where time goes",
    )
    table = Table(*columns, title="predicted, nothing measured")
    for row in found:
        parts = sorted(((v, k) for k, v in row["seconds"].items() if k not in ("total", "trunk")), reverse=True)[:3]
        total, error = row["seconds"]["total"], row["predicted_difference"]
        table.add_row(
            row["gpu"],
            str(row["frames"]),
            row["name"],
            f"{total:.1f}",
            f"{row['seconds']['trunk']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['trunk_ratio']:.2f}",
            f"{row['over_floor']:.2f}",
            "-" if error is None else f"{error:.3f}",
            ", ".join(f"{name} {value / total:.0%}" for value, name in parts),
        )
    Console(width=170).print(table)
    verdicts = []
    for name, count in places:
        here = [row for row in found if (row["gpu"], row["frames"]) == (name, count)]
        plans = [r for r in here if r["name"].startswith("plan") and r["predicted_difference"] <= ACCEPTABLE]
        if not plans:
            verdicts.append(Verdict(f"{name}, {count} frames: a plan within {ACCEPTABLE:g}", 0.0, 1.0, False))
            continue
        best = max(plans, key=lambda row: row["ratio"])
        error = best["predicted_difference"]
        label = f"{name}, {count} frames, all predicted, at {error:.3f} of output difference by the testbed's errors"
        if count in TARGETS:
            claim = f"{label}: dense over planned"
            verdicts.append(Verdict(claim, best["ratio"], TARGETS[count], best["ratio"] >= TARGETS[count]))
        claim = f"{label}: planned over the floor"
        verdicts.append(Verdict(claim, best["over_floor"], OVER_FLOOR, best["over_floor"] <= OVER_FLOOR))
    figure(found, out.with_suffix(".png"))
    report(verdicts, out, rows=found, basis=BASIS)


if __name__ == "__main__":
    typer.run(main)
