"""Claim: the weights alone, without any image, tell the ranks of attention; beside it, what a probe tells.

`python -m experiments.rank_from_weights [--scenes 8]`. Measured: mean entropy and effective rank of every layer of the
testbed on held-out scenes, which neither the weights' prediction nor the shipped preset (8 other scenes) has seen. The
claim asks a median error of 10 % in the effective rank.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from accel.models import load_model
from experiments.rank_intervals import measured
from experiments.verdict import Verdict, report
from meanfield import RankParams, effective_rank, predict_rank

FIRST_SCENE = 16
"""The scenes before it calibrated the intervals."""
FRAMES = (4, 16)


def main(
    scenes: Annotated[int, typer.Option(min=2)] = 8,
    cache: Annotated[Path, typer.Option(help="Folder for the measurements.")] = Path("runs/rank_intervals"),
    out: Annotated[Path, typer.Option()] = Path("experiments/results/rank_from_weights.json"),
) -> None:
    """Print errors of both predictions and write them."""
    model = load_model("testbed")
    arrays = {name: value.numpy() for name, value in model.state_dict().items() if value.dtype is torch.float32}
    per_frame = model.config.special_tokens + (model.config.image_size // model.config.patch_size) ** 2
    from_weights = RankParams.from_weights(arrays, heads=model.config.num_heads, tokens_per_frame=per_frame)
    data = [measured(model, FIRST_SCENE + scene, cache) for scene in range(scenes)]
    table = Table("frames", "from", "effective rank", "entropy, nats", "rank correlation over layers")
    numbers: dict[str, dict[str, float]] = {}
    for frames in FRAMES:
        tokens = float(frames * per_frame)
        rank = np.mean([effective_rank(d[f"singular_values_{frames}"]).mean(1) for d in data], axis=0)
        entropy = np.mean([d[f"entropy_{frames}"].mean(1) for d in data], axis=0)
        predictions = {"weights": from_weights, "probe": "testbed"}
        for name, params in predictions.items():
            found = predict_rank(model.config.depth, tokens, params=params)
            log_error = np.abs(np.log(found["attention_effective_rank"].values / rank))
            nats = np.abs(found["entropy"].values - entropy)
            order = float(spearmanr(found["attention_effective_rank"].values, rank).statistic)
            numbers[f"{name}, {frames} frames"] = {
                "median_log_error": float(np.median(log_error)),
                "largest_log_error": float(log_error.max()),
                "median_entropy_error": float(np.median(nats)),
                "largest_entropy_error": float(nats.max()),
                "rank_correlation": order,
            }
            row = (f"{np.median(e):.2f} (largest {e.max():.2f})" for e in (log_error, nats))
            table.add_row(str(frames), name, *row, f"{order:.2f}")
    Console().print(table)
    verdicts = [
        Verdict(
            f"median log error of the effective rank at {frames} frames, from the {name}",
            value := numbers[f"{name}, {frames} frames"]["median_log_error"],
            0.1,
            value <= 0.1,
        )
        for frames in FRAMES
        for name in ("weights", "probe")
    ]
    report(verdicts, out, errors=numbers, scenes=scenes)


if __name__ == "__main__":
    typer.run(main)
