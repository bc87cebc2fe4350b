"""Probe the testbed on calibration scenes: `python -m experiments.testbed.make_preset` writes the preset "testbed".

Singular values, entropies and token energies are averaged over scenes of 4 frames; experiments predict other scenes.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
import xarray as xr
from rich.progress import track

from accel.models import load_model
from accel.profile import Profile, probe
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch


def main(
    weights: Annotated[str, typer.Option()] = "testbed",
    scenes: Annotated[int, typer.Option(min=1)] = 8,
    out: Annotated[Path, typer.Option()] = Path("meanfield/presets/testbed.json"),
) -> None:
    """Write the rank parameters of the testbed."""
    model = load_model(weights)
    datasets = []
    for scene in track(range(scenes), "probing"):
        images = sample_batch(held_out_generator(800_000 + scene), 1, 4).images
        generator = torch.Generator().manual_seed(scene)
        datasets.append(probe(model, images, generator=generator, progress=False).data)
    datasets = [data.drop_vars("query") for data in datasets]  # each scene sampled its own queries
    mean = xr.concat(datasets, "scene").mean("scene", keep_attrs=True).assign_attrs(datasets[0].attrs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(Profile(mean).rank_params(name="testbed").to_json() + "\n")
    print(f"wrote {out} from {scenes} scenes")


if __name__ == "__main__":
    typer.run(main)
