"""What every rank does: read its photographs, run its share of the forward, write its part; rank 0 joins the parts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.cost import Device
from accel.distributed.forward import ShardedModel
from accel.distributed.parts import assemble, clear, complete, part_path, write_arrays, write_text
from accel.distributed.ranks import Ranks
from accel.distributed.shard import shares
from accel.errors import AccelError
from accel.images import file_names, read_images, select_images
from accel.layout import TokenLayout
from accel.models import VGGT, load_model
from accel.patch import out_of_memory
from accel.presets import published_schedule
from accel.profile import Profile
from accel.provenance import provenance
from accel.run import Settings, make_schedule, prediction_arrays
from accel.schedule import Schedule, exact_schedule
from accel.store import OUTPUTS, check_folder

STALE = set(OUTPUTS) - {"predictions.npz", "schedule.json", "results.json", "profile.nc"}
"""What an earlier `accel run` left in the folder that would no longer belong to the predictions there; a probe does."""


@dataclass(frozen=True)
class Job:
    """What was asked for; of `schedule`, `profile` and `published` at most one, none is exact attention."""

    images: tuple[Path, ...]
    out: Path
    weights: str = "testbed"
    schedule: Path | None = None
    profile: Path | None = None
    budget: float | None = None
    tolerance: float | None = None
    published: str | None = None
    dtype: str = "float32"
    frames: int | None = None
    frames_per_chunk: int | None = None


def run(job: Job, ranks: Ranks, device: torch.device) -> dict[str, Any] | None:
    """Predictions of the job's photographs in `job.out`, and on rank 0 the numbers of results.json.

    Files: part-NNNNN.npz of each rank, taken away once rank 0 has written predictions.npz, schedule.json, results.json.
    AccelError for bad input, for more ranks than photographs, for too little memory, and when another rank is lost: the
    parts that are complete are then named and stay.
    """
    try:
        return _run(job, ranks, device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        at = f" in {ranks.doing}" if ranks.doing else ""
        raise AccelError(
            f"rank {ranks.rank} of {ranks.size} is out of memory{at}; start more ranks, or give a smaller "
            f"--frames-per-chunk, --dtype bfloat16, or fewer --frames"
        ) from error


def _run(job: Job, ranks: Ranks, device: torch.device) -> dict[str, Any] | None:
    ranks.doing = "the reading of weights and photographs"
    model = load_model(job.weights, device, getattr(torch, job.dtype))
    paths = select_images(job.images, job.frames)
    counts = shares(len(paths), ranks.size)
    first = sum(counts[: ranks.rank])
    own = slice(first, first + counts[ranks.rank])
    images = read_images(paths[own], model.config)
    check_folder(job.out)
    if ranks.rank == 0:
        clear(job.out)
    job.out.mkdir(parents=True, exist_ok=True)
    _check_same(paths, counts, images.original_size, ranks)
    layout = replace(model.layout(images.tensor), frames=len(paths))
    ranks.doing = "the choice of the schedule"
    text = _schedule(job, model, layout, device).to_json() if ranks.rank == 0 else ""
    schedule = Schedule.from_json(ranks.from_first(text))
    model.frames_per_chunk = job.frames_per_chunk or schedule.frames_per_chunk
    sharded = ShardedModel(model, schedule, ranks)
    found, seconds, waited = _forward(sharded, images.tensor.to(device), ranks)
    ranks.doing = "the writing of the parts"
    arrays = prediction_arrays(found | {"pose_enc": found["pose_enc"][:, own]})
    write_arrays(part_path(job.out, ranks.rank), arrays | {"names": np.array(file_names(paths)[own])})
    row = torch.tensor([[seconds, waited, *sharded.sent.values()]], dtype=torch.float64, device=ranks.device)
    try:
        table = ranks.gather(row, [1] * ranks.size).tolist()
    except AccelError as error:
        raise AccelError(f"{error}; {' and '.join(complete(job.out))} in {job.out} can be read") from error
    if ranks.rank:
        return None
    results = _results(job, schedule, counts, table, device)
    write_arrays(job.out / "predictions.npz", assemble(job.out, ranks.size))
    schedule.save(job.out / "schedule.json")
    write_text(job.out / "results.json", json.dumps(results, indent=1) + "\n")
    for name in STALE:
        (job.out / name).unlink(missing_ok=True)
    clear(job.out)
    return results


def _check_same(paths: list[Path], counts: tuple[int, ...], size: tuple[int, int], ranks: Ranks) -> None:
    """AccelError unless all ranks see as many photographs, of one size."""
    mine = torch.tensor([[len(paths), *size]], device=ranks.device)
    rows = ranks.gather(mine, [1] * ranks.size).tolist()
    for rank, (frames, width, height) in enumerate(rows):
        if frames != len(paths):
            raise AccelError(
                f"rank {ranks.rank} sees {len(paths)} photographs and rank {rank} {frames}; give all nodes the same"
            )
        if (width, height) != tuple(rows[0][1:]):
            raise AccelError(
                f"mixed sizes: {paths[0]} is {rows[0][1]}x{rows[0][2]} and {paths[sum(counts[:rank])]} is "
                f"{width}x{height}; resize or crop all photographs to one size"
            )


def _schedule(job: Job, model: VGGT, layout: TokenLayout, device: torch.device) -> Schedule:
    """The schedule asked for, for this layout."""
    layers = model.config.depth
    if job.published is not None:
        return published_schedule(job.published, layout, layers)
    if job.profile is not None:
        profile = Profile.load(job.profile)
        settings = Settings(weights=job.weights, budget=job.budget, tolerance=job.tolerance)
        machine = Device.measure(device, config=model.config, dtype=getattr(torch, job.dtype))
        return make_schedule(profile, layout, settings, machine)
    if job.schedule is None:
        return exact_schedule(layout, layers)
    schedule = Schedule.load(job.schedule)
    if schedule.layout != layout:
        raise AccelError(
            f"{job.schedule} is for {schedule.layout} and the photographs make {layout}; plan for them: accel plan "
            f"PROFILE --frames {layout.frames} --out FILE"
        )
    return schedule


def _forward(sharded: ShardedModel, x: Tensor, ranks: Ranks) -> tuple[dict[str, Tensor], float, float]:
    """This rank's predictions, their seconds, and how many of these it waited for others."""
    ranks.gather(torch.zeros(1, device=ranks.device), [1] * ranks.size)  # all begin together
    before, start = ranks.seconds, time.perf_counter()
    found = sharded(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return found, time.perf_counter() - start, ranks.seconds - before


def _results(job: Job, schedule: Schedule, counts: tuple[int, ...], table: list[list[float]], device) -> dict[str, Any]:
    """The numbers of results.json; `table` has a row per rank: seconds, seconds waited, bytes per layer and camera."""
    frames, sent = sum(counts), [row[2:] for row in table]
    layers = [
        {
            "layer": layer,
            "policy": policy.to_dict(),
            "description": policy.describe(),
            "sent_bytes": [row[layer] for row in sent],
            "sent_bytes_per_frame": sum(row[layer] for row in sent) / frames,
        }
        for layer, policy in enumerate(schedule.policies)
    ]
    policies = dict.fromkeys(row["description"] for row in layers)
    return {
        "weights": job.weights,
        "dtype": job.dtype,
        "device": str(device),
        "frames": list(counts),
        "tokens": schedule.layout.tokens,
        "seconds": [row[0] for row in table],
        "seconds_waited": [row[1] for row in table],
        "layers": layers,
        "camera_bytes": [row[-1] for row in sent],
        "sent_bytes_per_frame": {
            name: sum(row["sent_bytes_per_frame"] for row in layers if row["description"] == name) for name in policies
        },
        "provenance": provenance(device=device, dtype=job.dtype),
    }
