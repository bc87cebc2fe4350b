"""Seconds and memory of a model before anything runs: `accel estimate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.console import AsJson
from accel.errors import AccelError

SETTINGS = ("dense", "floor")


def estimate(
    model: str,
    frames: Sequence[int],
    size: tuple[int, int],
    device: Any,
    settings: Sequence[str] = SETTINGS,
) -> list[dict[str, Any]]:
    """Predicted seconds of a forward by number of frames and setting, and its peak memory.

    model: "vggt", "pi3" or "vggt-omega" (`accel.backbones`); size: height and width of the photographs, pixels; device:
    an `accel.cost.Device`. A setting is "dense", "floor" (frame attention in every global layer), or a published one
    (`accel.presets`). Rows have model, frames, tokens, setting, exact, seconds (by part, and "total") and memory in
    bytes. exact: whether the setting leaves nothing out at so many frames. VGGT is accel's own forward, with the
    launches of its default chunks of frames; the others, which accel does not run itself, take all frames at once and
    have None for memory. AccelError: unknown names or sizes.
    """
    from accel.backbones import backbone
    from accel.cost import predict_seconds
    from accel.memory import default_chunk, peak_memory
    from accel.models import VGGT_1B
    from accel.policies import Exact, Frame
    from accel.presets import PUBLISHED, published_schedule

    unknown = [name for name in settings if name not in (*SETTINGS, *PUBLISHED)]
    if unknown:
        raise AccelError(f"{unknown[0]!r} is no setting; use one of {[*SETTINGS, *PUBLISHED]}")
    net, rows = backbone(model), []
    for count in frames:
        layout = net.layout(count, *size)
        own = model == "vggt"
        chunk = min(count, default_chunk(layout)) if own else None
        all_of_it = Exact().cost(layout, net.head_dim, net.num_heads)
        for setting in settings:
            if setting in SETTINGS:
                policies = ((Exact() if setting == "dense" else Frame()),) * net.global_blocks
            else:
                policies = published_schedule(setting, layout, net.global_blocks).policies
            memory = peak_memory(VGGT_1B, layout, policies, itemsize=device.itemsize).peak if own else None
            rows.append(
                {
                    "model": model,
                    "frames": count,
                    "tokens": layout.tokens,
                    "setting": setting,
                    "exact": all(p.cost(layout, net.head_dim, net.num_heads) == all_of_it for p in set(policies)),
                    "seconds": predict_seconds(net, layout, device, policies, frames_per_chunk=chunk),
                    "memory": memory,
                }
            )
    return rows


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from "392x518"."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", text)
    if not match:
        raise AccelError(f'size "{text}" is not a height and a width; give pixels such as 392x518')
    return int(match[1]), int(match[2])


def command(
    frames: Annotated[str, typer.Option(help="Numbers of frames, such as 100 or 100,300,1000.")],
    gpu: Annotated[str, typer.Option(help="A GPU of the table (H100, A100, H20, ...), or a file of accel calibrate.")],
    model: Annotated[str, typer.Option(help="vggt, pi3 or vggt-omega.")] = "vggt",
    size: Annotated[str, typer.Option(help="Height x width of the photographs in pixels.")] = "392x518",
    settings: Annotated[
        str, typer.Option(help="dense, floor (frame attention everywhere), or published settings such as avggt.")
    ] = "dense,avggt,fastvggt,floor",
    as_json: AsJson = False,
) -> None:
    """Seconds and memory to expect of a model on a GPU, without running anything."""

    from accel.cli import parse_frames, print_json, print_table
    from accel.devices import device_named, gpu_named, load_device

    counts, pixels = parse_frames(frames), parse_size(size)
    calibrated = Path(gpu).suffix == ".json"
    device = load_device(Path(gpu), sizes="vggt-1b") if calibrated else device_named(gpu)
    free = None if calibrated else gpu_named(gpu).memory
    rows = estimate(model, counts, pixels, device, [name.strip() for name in settings.split(",")])
    if as_json:
        print_json({"device": device.to_dict(), "memory": free, "rows": rows})
        return
    cells = []
    for row in rows:
        dense = next(r for r in rows if r["frames"] == row["frames"])["seconds"]["total"]
        total, memory = row["seconds"]["total"], row["memory"]
        fits = "" if memory is None or free is None or memory <= free else " (does not fit)"
        cells.append(
            (
                str(row["frames"]),
                str(row["tokens"]),
                row["setting"] + (" (exact here)" if row["exact"] and row["setting"] != "dense" else ""),
                f"{total:.3g}",
                f"{dense / total:.2f}",
                "-" if memory is None else f"{memory / 1e9:.1f}{fits}",
            )
        )
    first = rows[0]["setting"]
    print_table(("frames", "tokens", "setting", "seconds", f"{first} over this", "peak memory, GB"), cells, left=(2,))
    typer.echo(f"predicted for {model} on {device.name}, {pixels[0]}x{pixels[1]} pixels; nothing was run")
