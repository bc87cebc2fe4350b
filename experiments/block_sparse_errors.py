"""Which choice of block-sparse attention errs least at equal density? And what does the map cost at a million tokens?

`python -m experiments.block_sparse_errors [--scenes 3]`. Relative error of the output of every global layer of the
testbed at 16 frames, against exact attention, where a query pays for the same number of keys under each choice (stand-
ins count). The grid has 8 x 8 patches, so that blocks of 32 x 16 are to it what 512 x 256 are to VGGT's; there the
published 128 x 64 are finer. The synthetic fields, smooth in the image and alike in all frames, have VGGT's 28 x 37
grid and the published blocks. The last part makes the block map of one head at a million tokens.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from accel.layout import TokenLayout
from accel.models.checkpoint import load_model
from accel.patch import record
from accel.policies import BlockSparse, base
from accel.policies.block_map import block_scores, pool, select_blocks
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

CHOICES = {
    "published": {"fill": "none", "order": "raster"},
    "published, hilbert": {"fill": "none", "order": "hilbert"},
    "mass": {"fill": "mass", "order": "raster"},
    "mass, hilbert": {"fill": "mass", "order": "hilbert"},
    "cumulant": {"fill": "cumulant", "order": "raster"},
    "cumulant, hilbert": {"fill": "cumulant", "order": "hilbert"},
}
DENSITIES = (0.125, 0.25, 0.5)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


def errors(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, sizes: tuple[int, int]) -> np.ndarray:
    """Relative rms errors (choice, density)."""
    exact = scaled_dot_product_attention(q, k, v)
    found = np.empty((len(CHOICES), len(DENSITIES)))
    for i, choice in enumerate(CHOICES.values()):
        for j, density in enumerate(DENSITIES):
            policy = BlockSparse(density=density, query_block=sizes[0], key_block=sizes[1], **choice)
            wrong = policy.attend(q, k, v, layout) - exact
            found[i, j] = (wrong.square().mean() / exact.square().mean()).sqrt()
    return found


def testbed(scenes: int, frames: int, sizes: tuple[int, int]) -> np.ndarray:
    """Errors (scene, layer, choice, density)."""
    model, found = load_model("testbed"), []
    for scene in range(scenes):
        images = sample_batch(held_out_generator(910_000 + scene), 1, frames).images
        layout, rows = model.layout(images), []
        with record(model, lambda context, q, k, v: rows.append(errors(q, k, v, layout, sizes))):  # noqa: B023
            model(images)
        found.append(rows)
    return np.array(found)


def smooth_field(layout: TokenLayout, seed: int, sharpness: float) -> tuple[Tensor, ...]:
    """q, k, v (1, 2, N, 64) that vary over 7 patches of the image and are shared by the frames up to noise of .3."""
    generator = torch.Generator().manual_seed(seed)

    def field() -> Tensor:
        coarse = torch.randn((1, 128, layout.grid_h // 7, layout.grid_w // 7), generator=generator)
        image = interpolate(coarse, (layout.grid_h, layout.grid_w), mode="bicubic").flatten(2).mT
        noise = torch.randn((layout.frames, layout.patches_per_frame, 128), generator=generator)
        special = torch.randn((layout.frames, layout.special, 128), generator=generator)
        tokens = torch.cat([special, image + 0.3 * noise], 1)
        return tokens.reshape(1, layout.tokens, 2, 64).transpose(1, 2)

    shared, v = field(), field()
    return sharpness * shared, shared + 0.3 * field(), v


def map_at(tokens: int, H: int, D: int = 64) -> dict:
    """Seconds and the largest tensor of scores and selection for `tokens` patches, blocks 128 x 64, in chunks."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn((1, H, tokens // 128, D), generator=generator)
    keys = pool(torch.randn((1, H, tokens // 64, 1, D), generator=generator))
    most = torch.full((H,), tokens // 64 // 4)
    rows = max(1, base.BLOCK_ELEMENTS // (H * keys.mean.shape[2]))
    start = time.perf_counter()
    with Largest() as largest:
        for block in q.split(rows, 2):
            select_blocks(block_scores(block, keys, D**-0.5)[0], most, threshold=0.97)
    seconds = time.perf_counter() - start
    whole = 4 * H * (tokens // 128) * (tokens // 64)
    return {"tokens": tokens, "heads": H, "seconds": seconds, "largest_bytes": largest.bytes, "scores_bytes": whole}


@torch.no_grad()
def main(
    scenes: Annotated[int, typer.Option(min=1)] = 3,
    frames: Annotated[int, typer.Option(min=2)] = 16,
    tokens: Annotated[int, typer.Option(min=128, help="Of the map alone; 0 heads skip it.")] = 1_000_000,
    heads: Annotated[int, typer.Option(min=0)] = 1,
    out: Annotated[Path, typer.Option()] = Path("experiments/results/block_sparse_errors.json"),
) -> None:
    """Print the errors of every choice and the cost of the map."""
    data = {"testbed": testbed(scenes, frames, (32, 16)).mean(0)}
    layout = TokenLayout(4, 5, 28, 37)
    fields = [errors(*smooth_field(layout, seed, 2.0), layout, (128, 64)) for seed in range(3)]
    data["smooth field"] = np.mean(fields, 0)[None]
    for name, values in data.items():
        table = Table("choice", *(f"layer {i}, {d:g}" for i in range(len(values)) for d in DENSITIES[:2]), title=name)
        for i, choice in enumerate(CHOICES):
            table.add_row(choice, *(f"{values[layer, i, j]:.3f}" for layer in range(len(values)) for j in range(2)))
        Console(width=200).print(table)
    order = list(CHOICES)
    verdicts = []
    for name, values in data.items():
        for better, base_choice in (
            ("mass", "published"),
            ("mass, hilbert", "mass"),
            ("published, hilbert", "published"),
            ("cumulant", "mass"),
            ("cumulant, hilbert", "mass, hilbert"),
        ):
            ratio = values[:, order.index(better)] / values[:, order.index(base_choice)]
            claim = f"{name}: error of {better!r} over {base_choice!r}, worst layer and density"
            verdicts.append(Verdict(claim, float(ratio.max()), 1.0, bool(ratio.max() < 1)))
            claim = f"{name}: error of {better!r} over {base_choice!r}, geometric mean"
            mean = float(np.exp(np.log(ratio).mean()))
            verdicts.append(Verdict(claim, mean, 1.0, mean < 1))
    found = map_at(tokens, heads) if heads else {}
    if found:
        claim = f"largest tensor of the map of {tokens} tokens and {heads} heads, bytes"
        limit = 8 * base.BLOCK_ELEMENTS  # the order of the blocks is in int64
        verdicts.append(Verdict(claim, found["largest_bytes"], limit, found["largest_bytes"] <= limit))
    report(verdicts, out, map=found, choices=order, densities=DENSITIES, **{k: v.tolist() for k, v in data.items()})


if __name__ == "__main__":
    typer.run(main)
