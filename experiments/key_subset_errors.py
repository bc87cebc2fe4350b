"""Policies that keep a subset of the keys, against each other at equal keys, on the testbed's activations.

Claims, at every number of frames and as geometric means over layers: a grid that moves from frame to frame errs less
than a fixed one, and in every layer; masses err less than the published settings' bare kept keys; the stride over
frames with masses too. Run: python -m experiments.key_subset_errors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accel.models.checkpoint import load_model
from accel.patch import record
from accel.policies import PhasedGrid, Subsample, TemporalStride
from accel.statistics import option_errors
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

SIZES = (8, 16, 32)
POLICIES = {
    "fixed grid, masses": Subsample(stride=4, fill="mass"),
    "moving grid, masses": PhasedGrid(2, 1),
    "fixed grid, no masses": Subsample(stride=4),
    "moving grid, no masses": PhasedGrid(2, 1, fill="none"),
    "moving grid 3/2, masses": PhasedGrid(3, 2),
    "moving grid 3/2, published": PhasedGrid.regime(1.5),
    "stride 3, masses": TemporalStride(3),
    "stride 3, published": TemporalStride(3, own_key=False, fill="none"),
    "stride 3, no masses": TemporalStride(3, fill="none"),
    "stride 3, shrunk": TemporalStride(3, fill="shrink"),
}
PAIRS = (
    ("moving grid, masses", "fixed grid, masses"),
    ("moving grid, no masses", "fixed grid, no masses"),
    ("moving grid 3/2, masses", "moving grid 3/2, published"),
    ("stride 3, masses", "stride 3, published"),
)


def main(
    weights: Annotated[str, typer.Option(help="testbed, a hub id or a checkpoint.")] = "testbed",
    scenes: Annotated[int, typer.Option(min=1)] = 3,
    out: Annotated[Path, typer.Option(help="JSON.")] = Path("experiments/results/key_subset_errors.json"),
) -> None:
    """Print the errors of each policy by layer, and the verdicts."""
    model, policies = load_model(weights), list(POLICIES.values())
    found: dict[int, np.ndarray] = {}
    for size in track(SIZES, "frames"):
        errors = []
        for scene in range(scenes):
            images = sample_batch(held_out_generator(700_000 + scene), 1, size).images
            layout, layers = model.layout(images), []

            def measure(context, q, k, v, layout=layout, layers=layers):
                layers.append(option_errors(q, k, v, layout, policies, context=context))

            with torch.no_grad(), record(model, measure):
                model(images)
            errors.append(layers)
        found[size] = np.sqrt(np.mean(np.square(errors), 0)).T  # (policy, layer)
    table = Table("policy", "frames", "keys", *(f"layer {i}" for i in range(found[SIZES[0]].shape[1])), "mean")
    names = list(POLICIES)
    means = {size: np.exp(np.log(found[size]).mean(-1)) for size in SIZES}
    for i, name in enumerate(names):
        for size in SIZES:
            probe = model.layout(torch.zeros(1, size, *images.shape[2:]))
            keys = POLICIES[name].kept_keys(probe) / probe.tokens
            row = (*found[size][i], means[size][i])
            table.add_row(name, str(size), f"{keys:.2f}", *(f"{x:.4f}" for x in row))
    Console(width=120).print(table)
    verdicts = []
    for ours, other in PAIRS:
        a, b = names.index(ours), names.index(other)
        ratio = max(means[size][a] / means[size][b] for size in SIZES)
        verdicts.append(Verdict(f"error, mean of layers: {ours} / {other}, worst of {SIZES}", ratio, 1.0, ratio < 1))
        worst = max((found[size][a] / found[size][b]).max() for size in SIZES)
        verdicts.append(Verdict(f"error, worst layer: {ours} / {other}, worst of {SIZES}", worst, 1.0, bool(worst < 1)))
    verdicts = [Verdict(v.claim, float(v.value), v.threshold, bool(v.holds)) for v in verdicts]
    tables = {str(size): dict(zip(names, found[size].tolist(), strict=True)) for size in SIZES}
    report(verdicts, out, errors=tables, scenes=scenes)


if __name__ == "__main__":
    typer.run(main)
