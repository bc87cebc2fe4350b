"""Probe the testbed on calibration scenes: `python -m experiments.testbed.make_preset` writes the preset "testbed".

Each scene of 4 frames (with its first 2) is kept as a replicate, so that predictions carry intervals; experiments
predict other scenes.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track

from accel.models import load_model
from accel.profile import probe
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from meanfield.params import RankParams


def main(
    weights: Annotated[str, typer.Option()] = "testbed",
    scenes: Annotated[int, typer.Option(min=2)] = 8,
    out: Annotated[Path, typer.Option()] = Path("meanfield/presets/testbed.json"),
) -> None:
    """Write the rank parameters of the testbed."""
    model = load_model(weights)
    arrays = []
    for scene in track(range(scenes), "probing"):
        images = sample_batch(held_out_generator(800_000 + scene), 1, 4).images
        generator = torch.Generator().manual_seed(scene)
        arrays.append(probe(model, images, generator=generator, progress=False).rank_arrays())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(RankParams.from_probes(arrays, name="testbed").to_json() + "\n")
    print(f"wrote {out} from {scenes} scenes")


if __name__ == "__main__":
    typer.run(main)
