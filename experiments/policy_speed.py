"""What does attention cost under each policy, over dense attention in the same run?

`python -m experiments.policy_speed [--only block_sparse,merge]`. 4 heads of 64 channels on N = 16384 tokens (16 frames
of 4 specials and 30 x 34 patches), float32. Every round runs dense attention and each policy once, and the ratios are
those of the medians over rounds, so that what else the machine does meets all alike; ratios of CPU seconds stand beside
them, which another process disturbs less. Selection, matching, the block
map and joining are part of a policy's time. Last, the testbed under a schedule that is exact in every layer over the
testbed itself: the price of `patch`.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from accel.layout import TokenLayout
from accel.models.checkpoint import load_model
from accel.patch import patch
from accel.policies import (
    BlockSparse,
    Context,
    Exact,
    Frame,
    Merge,
    PhasedGrid,
    Policy,
    QueryMerge,
    Subsample,
    TemporalStride,
)
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

LAYOUT = TokenLayout(16, 4, 30, 34)


def candidates() -> dict[str, tuple[Policy, float | None]]:
    """Policies by name, with the bound promised on time over dense, where one was."""
    found: dict[str, tuple[Policy, float | None]] = {}
    for density in (0.125, 0.25, 0.5):
        found[f"block_sparse {density:g}"] = BlockSparse(density=density), 1.5 * density
        found[f"block_sparse {density:g}, published"] = BlockSparse.faster_vggt(1 - density), 1.5 * density
        found[f"block_sparse {density:g}, cumulant"] = BlockSparse(density=density, fill="cumulant"), None
    found["subsample 4"] = Subsample(stride=4), 0.35
    found["subsample 4, mass"] = Subsample(stride=4, fill="mass"), 0.35
    found["frame"] = Frame(), None
    for stride in (4, 8):
        found[f"temporal_stride {stride}"] = TemporalStride(stride), None
    found["phased_grid"] = PhasedGrid(), None
    found["merge .35"] = Merge(keep=0.35), 0.25
    found["merge, published"] = Merge.fastvggt(), None
    found["query_merge"] = QueryMerge(), None
    return found


def interleaved(calls: dict[str, Callable], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds and median CPU seconds of each call over the rounds, after one round that is not counted."""
    found: tuple[dict[str, list[float]], ...] = tuple({name: [] for name in calls} for _ in range(2))
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            for times, value in zip(found, taken, strict=True):
                if turn:
                    times[name].append(value)
    return tuple({name: statistics.median(values) for name, values in times.items()} for times in found)


@torch.no_grad()
def attention_ratios(chosen: dict[str, tuple[Policy, float | None]], rounds: int, tokens: int) -> list[dict]:
    """Median seconds of each policy and of dense attention, and their ratio, on LAYOUT."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, LAYOUT.tokens, 4, 64)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
    x = torch.randn((1, LAYOUT.tokens, tokens), generator=generator)
    calls: dict[str, Callable] = {"dense": lambda: scaled_dot_product_attention(q, k, v)}
    for name, (policy, _) in chosen.items():
        calls[name] = lambda policy=policy: policy.attend(q, k, v, LAYOUT, context=Context(tokens=x))
    seconds, cpu = interleaved(calls, rounds)
    whole = Exact().cost(LAYOUT, 64, 4).flops
    rows = []
    for name in calls:
        declared = chosen[name][0].cost(LAYOUT, 64, 4).flops / whole if name in chosen else 1.0
        row = {"policy": name, "seconds": seconds[name], "ratio": seconds[name] / seconds["dense"]}
        rows.append(row | {"cpu_ratio": cpu[name] / cpu["dense"], "declared": declared})
    return rows


@torch.no_grad()
def patch_ratio(frames: int, rounds: int) -> tuple[float, dict]:
    """Median time of the testbed with an exact policy in every layer over the testbed as it is."""
    model = load_model("testbed")
    images = sample_batch(held_out_generator(900_000), 1, frames).images
    schedule = SimpleNamespace(layout=model.layout(images), policies=(Exact(),) * model.config.depth)

    def patched() -> None:
        with patch(model, schedule):
            model(images)

    seconds, cpu = interleaved({"unpatched": lambda: model(images), "patched": patched}, rounds)
    more = {"frames": frames, "rounds": rounds, "cpu_ratio": cpu["patched"] / cpu["unpatched"]}
    return seconds["patched"] / seconds["unpatched"], seconds | more


def main(
    only: Annotated[str, typer.Option(help="Beginnings of names, separated by commas; all by default.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    frames: Annotated[int, typer.Option(min=2, help="Of the testbed under an exact schedule.")] = 16,
    model_rounds: Annotated[int, typer.Option(min=0)] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    channels: Annotated[int, typer.Option(min=1, help="Of the input tokens that merging may match on.")] = 256,
    out: Annotated[Path, typer.Option()] = Path("experiments/results/policy_speed.json"),
) -> None:
    """Print the ratios beside the bounds promised."""
    torch.set_num_threads(threads)
    starts = tuple(only.split(","))
    chosen = {name: pair for name, pair in candidates().items() if name.startswith(starts)}
    rows = attention_ratios(chosen, rounds, channels)
    table = Table(
        "policy", "s", "over dense", "CPU over dense", "declared", "bound", title=f"{LAYOUT}, {threads} threads"
    )
    verdicts = []
    for row in rows:
        bound = chosen[row["policy"]][1] if row["policy"] in chosen else None
        numbers = (f"{row[name]:.3f}" for name in ("seconds", "ratio", "cpu_ratio", "declared"))
        table.add_row(row["policy"], *numbers, "" if bound is None else f"{bound:.3f}")
        if bound is not None:
            verdicts.append(Verdict(f"{row['policy']}: time over dense", row["ratio"], bound, row["ratio"] <= bound))
    Console(width=120).print(table)
    model = {}
    if model_rounds:
        ratio, model = patch_ratio(frames, model_rounds)
        claim = f"testbed, {frames} frames, exact in every layer over unpatched"
        verdicts.append(Verdict(claim, ratio, 1.02, ratio <= 1.02))
    report(verdicts, out, rows=rows, model=model, machine=platform.processor() or platform.machine(), rounds=rounds)


if __name__ == "__main__":
    typer.run(main)
