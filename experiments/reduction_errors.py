"""Do errors of cheaper attention at 8 and 16 frames follow from a probe of 4?

Claim: the calibrated theory predicts the relative error of each layer's attention output, for every option of the
planner, closer (median factor) than "what the probe measured". Run: python -m experiments.reduction_errors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from accel.models.checkpoint import load_model
from accel.predictors import ConstantPredictor, OraclePredictor, TheoryPredictor
from accel.profile import default_options, probe
from experiments.testbed.scenes import sample_batch

PREDICTORS = (TheoryPredictor(), TheoryPredictor(calibrated=False), ConstantPredictor())


def compare(model: torch.nn.Module, seed: int, frames: int) -> dict[str, np.ndarray]:
    """Predicted and measured errors of one scene, by name: (sizes, layer, option), sizes 4, 8 and 16 frames."""
    images = sample_batch(torch.Generator().manual_seed(seed), 1, 16).images
    options = default_options(model.layout(images[:, :frames]))
    profile = probe(
        model, images, frames=frames, options=options, generator=torch.Generator().manual_seed(seed), progress=False
    )
    found: dict[str, list[np.ndarray]] = {predictor.name: [] for predictor in PREDICTORS} | {"measured": []}
    kept = [policy for policy in options if policy.name != "exact"]
    for size in (4, 8, 16):
        layout = model.layout(images[:, :size])
        found["measured"].append(OraclePredictor(model, images[:, :size])(None, layout, kept))
        for predictor in PREDICTORS:
            found[predictor.name].append(predictor(profile, layout, kept))
    return {name: np.stack(values) for name, values in found.items()} | {"noise": profile.data["shared_noise"].values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="testbed", help="testbed, a hub id or a checkpoint")
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--frames", type=int, default=4, help="of the probe")
    parser.add_argument("--out", type=Path, help="write all numbers to this .npz")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    scenes = [compare(model, seed, arguments.frames) for seed in range(arguments.scenes)]
    table = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
    if arguments.out:
        np.savez(arguments.out, **table)
    print(f"shared noise, mean over layers, per scene: {table['noise'].mean(1).round(3)}")
    factors = {}
    for i, size in enumerate((4, 8, 16)):
        truth = table["measured"][:, i]
        for predictor in PREDICTORS:
            guess = table[predictor.name][:, i]
            log = np.log(guess / truth)
            per_scene = np.exp(np.median(np.abs(log), (1, 2)))
            factors[predictor.name, size] = float(np.exp(np.median(np.abs(log))))
            rho = np.median([spearmanr(g.ravel(), t.ravel())[0] for g, t in zip(guess, truth, strict=True)])
            print(
                f"{size:3d} frames {predictor.name:22s} Spearman {rho:.3f}  median ratio {np.exp(np.median(log)):.2f}  "
                f"median factor {factors[predictor.name, size]:.3f} "
                f"(scenes {per_scene.min():.2f}-{per_scene.max():.2f})  "
                f"90 % within {np.exp(np.quantile(np.abs(log), 0.9)):.2f}"
            )
    theory, constant = (np.mean([factors[name, size] for size in (8, 16)]) for name in ("theory", "constant"))
    print(
        f"VERDICT {'holds' if theory < constant else 'fails'}: mean median factor at 8 and 16 frames {theory:.3f} "
        f"(calibrated theory) against {constant:.3f} (constant), {arguments.scenes} scenes"
    )


if __name__ == "__main__":
    main()
