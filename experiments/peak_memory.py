"""Claim: VGGT-1B in float32 on two photographs at 518 px needs at most 8 GB of memory on a CPU.

`python -m experiments.peak_memory PHOTO PHOTO [--weights random:vggt-1b] [--out FILE]` loads the network in this
process, runs one forward and reports the peak resident memory of the whole process.
"""

import resource
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from accel.images import load_images
from accel.models import load_model
from experiments.verdict import Verdict, report

LIMIT_GB = 8.0


def peak_gb() -> float:
    """Peak resident memory of this process so far, in 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(
    images: Annotated[list[Path], typer.Argument(help="Photographs, or one folder.")],
    weights: Annotated[str, typer.Option()] = "random:vggt-1b",
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Measure the peak memory of one forward."""
    model = load_model(weights)
    loaded = peak_gb()
    batch = load_images(images, model.config).tensor
    start = time.perf_counter()
    with torch.no_grad():
        outputs = model(batch)
    seconds = time.perf_counter() - start
    finite = all(bool(x.isfinite().all()) for x in outputs.values())
    shape = tuple(batch.shape)
    print(f"images {shape}, weights {weights}: after loading {loaded:.2f} GB, peak {peak_gb():.2f} GB, {seconds:.1f} s")
    verdicts = [
        Verdict(f"peak memory of {weights} on {shape[1]} photographs, GB", peak_gb(), LIMIT_GB, peak_gb() <= LIMIT_GB),
        Verdict("share of outputs that are finite", float(finite), 1.0, finite),
    ]
    report(verdicts, out, images=shape, loaded_gb=loaded, peak_gb=peak_gb(), seconds=seconds)


if __name__ == "__main__":
    typer.run(main)
