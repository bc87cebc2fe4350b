"""Claim: a scene shared out over ranks gives the outputs of one process, and the exchange does not take the time.

`python -m experiments.sharding [--frames 24,64] [--ranks 1,2,4] [--repeats 3]`. The testbed on one held-out scene for
each number of frames, on gloo processes of one thread each, under every policy and under a plan. Reported are the
largest difference from one process (relative to the largest value of each output), the bytes that a frame costs, and
the seconds of a forward: medians over rounds in which every policy runs once, all ranks beginning together, the slowest
rank counting. A rank's seconds of waiting are those in which it did nothing but wait for other ranks: transport, and
their being late. More ranks than cores wait for cores too: claims about time are made for as many ranks as fit.
"""

import math
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import typer
from rich.console import Console
from rich.table import Table

from accel import Device, TheoryPredictor, load_model, patch, plan, probe
from accel.distributed import Ranks, ShardedModel
from accel.policies import BlockSparse, Exact, Frame, Merge, Subsample, TemporalStride
from accel.schedule import Schedule, exact_schedule
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

POLICIES = {
    "exact": Exact(),
    "frame": Frame(),
    "subsample 4": Subsample(stride=4),
    "temporal stride 4": TemporalStride(4),
    "merge .35": Merge(keep=0.35),
    "block-sparse .25": BlockSparse(density=0.25),
}
EQUAL, SHARE = 1e-4, 0.2


def schedules(model, images: torch.Tensor, tolerance: float) -> dict[str, Schedule]:
    """Each policy in every layer, and what the planner chooses for this machine."""
    exact = exact_schedule(model.layout(images), model.config.depth)
    found = {name: replace(exact, policies=(policy,) * exact.layers) for name, policy in POLICIES.items()}
    profile = probe(model, images, generator=torch.Generator().manual_seed(0), progress=False)
    device = Device.measure("cpu", config=model.config)
    found["planned"] = plan(profile, exact.layout, predictor=TheoryPredictor(), tolerance=tolerance, device=device)
    return found


def on_a_rank(rank: int, size: int, folder: str, images: torch.Tensor, texts: dict[str, str], repeats: int) -> None:
    """Run every schedule `repeats` times after one that is not counted; outputs and numbers go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size)
    ranks, model = Ranks(), load_model("testbed")
    found = {name: {"seconds": [], "waited": []} for name in texts}
    for turn in range(repeats + 1):
        for name, text in texts.items():
            sharded = ShardedModel(model, Schedule.from_json(text), ranks)
            own = images[:, sharded.shard.first :][:, : sharded.shard.local.frames]
            dist.barrier()
            waited, start = ranks.seconds, time.perf_counter()
            out = sharded(own)
            taken = time.perf_counter() - start, ranks.seconds - waited
            if turn == 0:
                found[name] |= {"out": out, "bytes": sum(sharded.sent.values())}
                continue
            for key, value in zip(("seconds", "waited"), taken, strict=True):
                found[name][key].append(value)
    torch.save(found, f"{folder}/{size}-{rank}.pt")
    dist.destroy_process_group()


def compare(name: str, ranks: list[dict], want: dict[str, torch.Tensor], frames: int) -> dict:
    """The row of one schedule on so many ranks."""
    parts = [rank[name] for rank in ranks]
    difference = 0.0
    for key, value in want.items():
        got = parts[0]["out"][key] if key == "pose_enc" else torch.cat([part["out"][key] for part in parts], 1)
        found = ((got - value).abs().max() / value.abs().max()).item()
        difference = max(difference, found if math.isfinite(found) else math.inf)
    rounds = list(zip(*(part["seconds"] for part in parts), strict=True))
    shares = [w / s for part in parts for w, s in zip(part["waited"], part["seconds"], strict=True)]
    return {
        "policy": name,
        "frames": frames,
        "ranks": len(ranks),
        "difference": difference,
        "bytes_per_frame": sum(part["bytes"] for part in parts) / frames,
        "seconds": statistics.median(map(max, rounds)),
        "waiting_share": statistics.median(shares),
    }


def main(
    frames: Annotated[str, typer.Option(help="Numbers of frames, separated by commas.")] = "24,64",
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, separated by commas; the first is the base.")] = "1,2,4",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Of the plan.")] = 0.03,
    out: Annotated[Path, typer.Option()] = Path("experiments/results/sharding.json"),
) -> None:
    """Print differences, bytes and seconds of every policy and number of ranks."""
    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(["__main__", "torch._dynamo"])  # which processes import once
    model, sizes = load_model("testbed"), [int(text) for text in ranks.split(",")]
    rows, verdicts = [], []
    plans = {}
    for count in map(int, frames.split(",")):
        images = sample_batch(held_out_generator(800_000 + count), 1, count).images
        chosen = schedules(model, images, tolerance)
        plans[count] = [policy.describe() for policy in chosen["planned"].policies]
        want = {}
        for name, schedule in chosen.items():
            with torch.no_grad(), patch(model, schedule):
                want[name] = model(images)
        texts = {name: schedule.to_json() for name, schedule in chosen.items()}
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                arguments = size, folder, images, texts, repeats
                mp.start_processes(on_a_rank, arguments, nprocs=size, start_method="forkserver")
                found = [torch.load(f"{folder}/{size}-{rank}.pt") for rank in range(size)]
            rows += [compare(name, found, want[name], count) for name in chosen]
    base = {(row["policy"], row["frames"]): row["seconds"] for row in rows if row["ranks"] == sizes[0]}
    title = f"testbed, one thread a rank, {len(os.sched_getaffinity(0))} cores"
    columns = ("policy", "frames", "ranks", "difference", "KiB / frame", "s", f"s over {sizes[0]}", "waiting")
    table = Table(*columns, title=title)
    for row in rows:
        row["over_base"] = row["seconds"] / base[row["policy"], row["frames"]]
        texts = (f"{row['difference']:.1e}", f"{row['bytes_per_frame'] / 1024:.1f}", f"{row['seconds']:.3f}")
        shares = (f"{row['over_base']:.2f}", f"{row['waiting_share']:.1%}")
        table.add_row(row["policy"], str(row["frames"]), str(row["ranks"]), *texts, *shares)
    Console(width=120).print(table)
    for name in dict.fromkeys(row["policy"] for row in rows):
        worst = max(row["difference"] for row in rows if row["policy"] == name)
        verdicts.append(Verdict(f"{name}: outputs of all ranks against one process", worst, EQUAL, worst <= EQUAL))
    fitting = [row for row in rows if 1 < row["ranks"] <= len(os.sched_getaffinity(0))]
    for row in fitting:
        if row["frames"] == max(plans):
            claim = f"{row['policy']}, {row['frames']} frames on {row['ranks']} ranks: share of the time spent waiting"
            verdicts.append(Verdict(claim, row["waiting_share"], SHARE, row["waiting_share"] <= SHARE))
    report(verdicts, out, rows=rows, plans=plans, cores=len(os.sched_getaffinity(0)), repeats=repeats)


if __name__ == "__main__":
    typer.run(main)
