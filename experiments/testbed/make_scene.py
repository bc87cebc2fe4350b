"""Render the scene bundled with the package: `python -m experiments.testbed.make_scene --out accel/data/scene`.

A held-out scene of the testbed's distribution, as photographs (PNG) with the truth beside them (truth.npz).
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch


def main(
    out: Annotated[Path, typer.Option(help="Folder for the images and truth.npz.")],
    frames: Annotated[int, typer.Option(min=2)] = 24,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write `frames` photographs of one scene with its cameras and depth."""
    out.mkdir(parents=True, exist_ok=True)
    batch = sample_batch(held_out_generator(900_000 + seed), 1, frames, full_depth=True)
    for index, image in enumerate(batch.images[0]):
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(out / f"{index:03d}.png", optimize=True)
    size = batch.images.shape[-1]
    focal = size / 2 / np.tan(batch.fov.numpy() / 2)
    intrinsics = np.array([[focal[1], 0, size / 2], [0, focal[0], size / 2], [0, 0, 1]], dtype=np.float32)
    np.savez_compressed(
        out / "truth.npz",
        extrinsics=batch.extrinsics[0].numpy(),
        intrinsics=np.repeat(intrinsics[None], frames, axis=0),
        depth=batch.full_depth[0].numpy().astype(np.float16),
    )


if __name__ == "__main__":
    typer.run(main)
