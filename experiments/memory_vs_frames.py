"""Claims: VGGT-1B takes 1,000 frames of 1,041 tokens in at most 60 GB; the memory model is within 10 % of the count;
the chunked forward equals the plain one to rounding; the testbed's memory grows no faster than its tokens.

`python -m experiments.memory_vs_frames [--counted 8,30,100,300,1000] [--frames 4,...,256] [--out FILE.json]`.

Counted, not measured: the bytes of all tensors alive at once in the program, which is followed without content (torch's
fake tensors), bfloat16 trunk, exact attention; weights and images included. The trunk that is followed has four pairs
of blocks and one block of patch embedding instead of 24 and 24, since each block gives back what it took and four
layers are kept in either; its weights are put at the full network's, and at the smallest size the full network is
followed as well. Beside it, equally counted, the forward as published: all layers kept, blocks whole, eight frames at a
time in the heads.

Measured: the peak resident memory of fresh processes that run the testbed on the CPU, dense and planned (2 %
tolerance, from a probe of four frames), less what they hold after loading (Linux). Growth exponents are slopes of log
bytes against log N between the two largest numbers of frames; planned ones are of another plan at each.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import torch
import typer

from accel import TheoryPredictor, load_images, load_model, plan, probe
from accel.cli import demo_folder
from accel.cost import Device
from accel.layout import TokenLayout
from accel.memory import peak_memory
from accel.models import VGGT_1B, VGGTConfig
from accel.patch import patch, record
from accel.schedule import Schedule, exact_schedule
from experiments.live_bytes import count_forward
from experiments.verdict import Verdict, report

PHOTOGRAPH = TokenLayout(1, 5, 28, 37)
SHALLOW = replace(VGGT_1B, depth=4, vit_depth=1, dpt_layers=(0, 1, 2, 3))
PUBLISHED_CHUNK = 8
LIMIT_GB, AGREEMENT, ROUNDING, LINEAR = 60.0, 0.1, 1e-4, 1.1


class Everything(VGGTConfig):
    """VGGT-1B whose aggregator keeps every layer, as the published one does."""

    @property
    def kept_layers(self) -> tuple[int, ...]:
        return tuple(range(self.depth))


def published(model, images) -> None:
    kept = model.aggregator(images, frames_per_chunk=None)
    model.camera(kept)
    model.dense(kept, *images.shape[-2:])


def counted(frames: list[int], config: VGGTConfig = SHALLOW) -> list[dict[str, float]]:
    """One row per number of frames of VGGT-1B: counted and predicted bytes, and those of the forward as published."""
    rows = []
    for count in frames:
        layout = replace(PHOTOGRAPH, frames=count)
        predicted = peak_memory(VGGT_1B, layout, itemsize=2)
        found = count_forward(config, layout, dtype=torch.bfloat16)
        chunk = min(PUBLISHED_CHUNK, count)
        whole = count_forward(Everything(), layout, frames_per_chunk=chunk, dtype=torch.bfloat16, forward=published)
        peak = found["peak"] - found["weights"] + predicted.weights
        rows.append(
            {
                "frames": count,
                "tokens": layout.tokens,
                "counted_bytes": peak,
                "predicted_bytes": predicted.peak,
                "stage": predicted.stage,
                "published_forward_bytes": whole["peak"],
                "largest_tensor_bytes": found["largest"],
            }
        )
        gb = [x / 1e9 for x in (peak, predicted.peak, whole["peak"])]
        print(
            "{} frames: counted {:.2f} GB, predicted {:.2f} GB; as published {:.2f} GB".format(count, *gb), flush=True
        )
    return rows


def resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at the peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@torch.no_grad()
def worker(path: Path) -> None:
    """Print, as JSON, the peak resident bytes of this process after loading and after a forward by a schedule file."""
    schedule = Schedule.load(path)
    model = load_model("testbed")
    model.frames_per_chunk = schedule.frames_per_chunk
    layout = schedule.layout
    size = model.config.patch_size
    images = torch.rand(
        1, layout.frames, 3, layout.grid_h * size, layout.grid_w * size, generator=torch.Generator().manual_seed(0)
    )
    with record(model, lambda *call: None):  # loads what a patched forward loads
        model(images[:, :2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    loaded = resident("VmRSS")
    with patch(model, schedule):
        model(images)
    print(json.dumps({"loaded": loaded, "peak": resident("VmHWM")}))


def measured(frames: list[int], chunk: int) -> list[dict[str, float]]:
    """Two rows, dense and planned, per number of frames of the testbed: bytes of a fresh process beyond loading."""
    model = load_model("testbed")
    images = load_images([demo_folder()], model.config).tensor
    profile = probe(model, images, frames=4, generator=torch.Generator().manual_seed(0), progress=False)
    device = Device.measure(config=model.config)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in frames:
            layout = replace(profile.layout, frames=count)
            planned = plan(profile, layout, predictor=TheoryPredictor(), tolerance=0.02, device=device)
            for name, schedule in (("dense", exact_schedule(layout, profile.layers)), ("planned", planned)):
                path = Path(folder) / "schedule.json"
                replace(schedule, frames_per_chunk=chunk).save(path)
                command = [sys.executable, "-m", "experiments.memory_vs_frames", "--worker", str(path)]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                bytes_ = json.loads(said.splitlines()[-1])
                predicted = peak_memory(model.config, layout, schedule.policies, frames_per_chunk=chunk)
                rows.append(
                    {
                        "frames": count,
                        "tokens": layout.tokens,
                        "name": name,
                        "frames_per_chunk": chunk,
                        "measured_bytes": bytes_["peak"] - bytes_["loaded"],
                        "loaded_bytes": bytes_["loaded"],
                        "predicted_bytes": predicted.peak - predicted.weights,
                        "policies": [p.describe() for p in schedule.policies],
                    }
                )
                print(f"{count} frames, {name}: {rows[-1]['measured_bytes'] / 1e6:.1f} MB beyond loading", flush=True)
    return rows


def exponent(rows: list[dict[str, float]], name: str) -> float:
    """Slope of log measured bytes against log N between the two largest numbers of frames."""
    a, b = [row for row in rows if row["name"] == name][-2:]
    return math.log(b["measured_bytes"] / a["measured_bytes"]) / math.log(b["tokens"] / a["tokens"])


@torch.no_grad()
def lean_difference() -> float:
    """Largest relative difference of an output of the testbed, one frame at a time against all at once."""
    model = load_model("testbed")
    images = load_images([demo_folder()], model.config).tensor
    found = []
    for chunk in (1, images.shape[1]):
        model.frames_per_chunk = chunk
        found.append(model(images))
    pairs = ((found[0][name].double(), found[1][name].double()) for name in found[0])
    found = [((a - b).norm() / b.norm()).item() for a, b in pairs]
    return max(x if math.isfinite(x) else math.inf for x in found)


def draw(large: list[dict], small: list[dict], path: Path) -> None:
    """Counted bytes of VGGT-1B, and measured bytes of the testbed, against frames."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    frames = [row["frames"] for row in large]
    for name, label, style in (
        ("published_forward_bytes", "as published, counted", "s--"),
        ("counted_bytes", "here, counted", "o-"),
        ("predicted_bytes", "here, predicted", "k+"),
    ):
        axes[0].loglog(frames, [row[name] / 1e9 for row in large], style, label=label)
    axes[0].axhline(LIMIT_GB, color="0.7", linewidth=1)
    axes[0].set(title="VGGT-1B, 392 x 518, bfloat16, exact", ylabel="peak, GB")
    for name, marker in (("dense", "o-"), ("planned", "s-")):
        rows = [row for row in small if row["name"] == name]
        points = [row["frames"] for row in rows]
        axes[1].loglog(points, [row["measured_bytes"] / 1e6 for row in rows], marker, label=f"{name}, measured")
        axes[1].loglog(points, [row["predicted_bytes"] / 1e6 for row in rows], "k:", linewidth=1)
    axes[1].set(title="testbed on the CPU, float32 (dotted: predicted)", ylabel="peak beyond loading, MB")
    for axis in axes:
        axis.set_xlabel("frames")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")] if text else []


def main(
    frames: Annotated[str, typer.Option(help="Testbed, measured.")] = "4,8,16,32,64,128,256",
    counts: Annotated[str, typer.Option("--counted", help="VGGT-1B, counted.")] = "8,30,100,300,1000",
    chunk: Annotated[int, typer.Option(help="Frames at once on the testbed.")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON; the figure lies beside it.")] = None,
    one: Annotated[Path | None, typer.Option("--worker", hidden=True)] = None,
) -> None:
    """Count and measure the peak memory against frames."""
    if one is not None:
        worker(one)
        return
    verdicts, large, small = [], counted(integers(counts)), measured(integers(frames), chunk)
    if large:
        last = large[-1]
        first = counted([large[0]["frames"]], VGGT_1B)[0]
        large[0]["counted_full_depth_bytes"] = first["counted_bytes"]
        gap = abs(first["counted_bytes"] / large[0]["counted_bytes"] - 1)
        worst = max(abs(row["predicted_bytes"] / row["counted_bytes"] - 1) for row in large)
        name = f"VGGT-1B, {last['frames']} frames of 1,041 tokens, bfloat16, counted peak, GB"
        verdicts += [
            Verdict(name, last["counted_bytes"] / 1e9, LIMIT_GB, last["counted_bytes"] <= LIMIT_GB * 1e9),
            Verdict(
                "predicted peak against the count, worst relative difference", worst, AGREEMENT, worst <= AGREEMENT
            ),
            Verdict("shallow trunk against all 24 pairs, relative difference of the count", gap, 0.01, gap <= 0.01),
        ]
    difference = lean_difference()
    verdicts.append(
        Verdict("one frame at a time against all at once, relative", difference, ROUNDING, difference <= ROUNDING)
    )
    for name in ("dense", "planned"):
        if len({row["frames"] for row in small}) > 1:
            slope = exponent(small, name)
            verdicts.append(Verdict(f"testbed, {name}: exponent of the memory in N", slope, LINEAR, slope <= LINEAR))
    report(verdicts, out, counted=large, measured=small)
    if out is not None:
        draw(large, small, out.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
