"""How many tokens must merging keep, and how many blocks block-sparse attention, for a tenth of error in every layer?

`python -m experiments.measured_sparsity`. Held-out scenes of the testbed; the error is the relative rms error of a
layer's attention output on the exact model's q, k, v, the geometric mean over the scenes. Blocks are 8 queries by 4
keys, the share of a frame of 64 patches that 128 by 64 are of VGGT's 1,036. Claims: a quarter of the blocks, and the
published merging rule, keep every layer within the tenth. `accel bench` takes the strength of policies on random
weights from the file that this writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from accel.bench.settings import block_density, layer_settings, sparsity_file
from accel.layout import TokenLayout
from accel.models.checkpoint import load_model
from accel.patch import record
from accel.policies import BlockSparse, Context, Merge, Policy
from accel.policies.block_map import block_scores, pool, select_blocks
from accel.statistics import option_errors
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

FIRST = 740_000
BLOCKS = (8, 4)
SIZES = {"query_block": BLOCKS[0], "key_block": BLOCKS[1]}
FRACTIONS = tuple(float(x) for x in 2.0 ** np.arange(-6, 0, 0.5))
KEEPS = (0.1, 0.14, 0.2, 0.28, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


def sweeps() -> dict[str, tuple[Policy, ...]]:
    """The policies of each sweep, from strong to gentle."""
    return {
        "kept": tuple(BlockSparse(density=block_density(x, BLOCKS[1]), **SIZES) for x in FRACTIONS),
        "kept_without_stand_ins": tuple(BlockSparse(density=x, fill="none", **SIZES) for x in FRACTIONS),
        "threshold": tuple(BlockSparse(density=1.0, threshold=x, fill="none", **SIZES) for x in THRESHOLDS),
        "keep": tuple(Merge(keep=x) for x in KEEPS),
    }


def kept_share(policy: BlockSparse, q: Tensor, k: Tensor, layout: TokenLayout) -> float:
    """The mean share of key blocks that a policy with a threshold keeps on q, k (1, H, N, D)."""
    places = policy.patch_order(layout)
    blocks = [
        x[:, :, places[: len(places) // n * n]].unflatten(2, (-1, n)) for x, n in zip((q, k), BLOCKS, strict=True)
    ]
    scores, _ = block_scores(pool(blocks[0]).mean, pool(blocks[1]), q.shape[-1] ** -0.5)
    most = torch.full((q.shape[1],), scores.shape[-1])
    _, count = select_blocks(scores, most, threshold=policy.threshold)
    return count.double().mean().item() / scores.shape[-1]


def least(values: np.ndarray, errors: np.ndarray, tolerance: float, at_worst: float = 1.0) -> list[float]:
    """For each layer the least value from which on all errors (layer, value) are within the tolerance."""
    bad = errors > tolerance
    first = values.size - np.argmax(bad[:, ::-1], 1)
    first[~bad.any(1)] = 0
    return [float(values[i]) if i < values.size else at_worst for i in first]


@torch.no_grad()
def measure(frames: int, scenes: int) -> tuple[TokenLayout, list[str], dict[str, np.ndarray]]:
    """Names of the benchmark's settings; log errors of every sweep and of these, and kept shares: (scene, layer, x)."""
    model = load_model("testbed")
    found: dict[str, list] = {}
    for scene in range(scenes):
        images = sample_batch(held_out_generator(FIRST + scene), 1, frames).images
        layout = model.layout(images)
        settings = layer_settings(layout, None, blocks=BLOCKS)
        groups = sweeps() | {"settings": tuple(x.policies[0] for x in settings.values() if not x.reason)}
        here: dict[str, list] = {name: [] for name in (*groups, "share")}

        def one(context: Context, q: Tensor, k: Tensor, v: Tensor, here=here, groups=groups, layout=layout) -> None:
            for name, policies in groups.items():
                here[name].append(np.log(option_errors(q, k, v, layout, policies, context=context)))
            here["share"].append([kept_share(policy, q, k, layout) for policy in groups["threshold"]])

        with record(model, one):
            model(images)
        for name, rows in here.items():
            found.setdefault(name, []).append(rows)
    names = [name for name, setting in settings.items() if not setting.reason]
    return layout, names, {name: np.array(rows) for name, rows in found.items()}


def main(
    frames: Annotated[int, typer.Option(min=2)] = 16,
    scenes: Annotated[int, typer.Option(min=1)] = 4,
    tolerance: Annotated[float, typer.Option(min=0.0)] = 0.1,
    out: Annotated[Path | None, typer.Option(help="JSON; by default the file that accel bench reads.")] = None,
) -> None:
    """Sweep the strengths, print what the tolerance needs, and write it."""
    layout, names, raw = measure(frames, scenes)
    errors = {name: np.exp(x.mean(0)) for name, x in raw.items() if name != "share"}
    share = raw["share"].mean(0)

    def needed(name: str, values: tuple[float, ...]) -> list[float]:
        return least(np.array(values), errors[name], tolerance)

    taus = needed("threshold", THRESHOLDS)
    shares = [float(share[layer, THRESHOLDS.index(tau)]) if tau < 1 else 1.0 for layer, tau in enumerate(taus)]
    numbers = {
        "block_sparse": {
            "kept": needed("kept", FRACTIONS),
            "kept_without_stand_ins": needed("kept_without_stand_ins", FRACTIONS),
            "threshold": taus,
            "kept_at_threshold": shares,
        },
        "merge": {"keep": needed("keep", KEEPS)},
        "errors": {name: errors["settings"][:, i].tolist() for i, name in enumerate(names)},
    }
    table = Table("layer", "blocks", "without stand-ins", "threshold", "its share", "merge keeps", title=str(layout))
    rows = [*numbers["block_sparse"].values(), *numbers["merge"].values()]
    for layer in range(len(taus)):
        table.add_row(str(layer), *(f"{row[layer]:.3g}" for row in rows))
    Console(width=120).print(table)
    verdicts = []
    for name, claim in (("faster-vggt", "a quarter of the blocks, published"), ("fastvggt", "the published merging")):
        worst = max(numbers["errors"][name])
        verdicts.append(Verdict(f"{claim}: attention error of the worst layer", worst, tolerance, worst <= tolerance))
    more = {"tolerance": tolerance, "frames": frames, "scenes": [FIRST, FIRST + scenes - 1], "blocks": BLOCKS}
    report(verdicts, out or sparsity_file(), layout=layout.to_dict(), **more, **numbers)


if __name__ == "__main__":
    typer.run(main)
