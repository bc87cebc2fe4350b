"""Train the testbed from scratch: `python -m experiments.testbed.train --out runs/testbed`.

Two gloo processes of one thread each; the run resumes from the last checkpoint in the output folder. The result is
deterministic for a seed and a number of processes up to the floating-point order of the hardware.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from accel.models.config import TESTBED
from experiments.testbed.objective import TARGET_GRID, TrainingModel, initialise, objective
from experiments.testbed.scenes import sample_batch

FRAMES_CHOICES, FRAMES_WEIGHTS = (1, 2, 3, 4, 6, 8), (0.04, 0.3, 0.2, 0.26, 0.1, 0.1)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run; `difficulty`, of the camera motion, rises as the poses are learned."""

    steps: int = 5000
    seed: int = 0
    global_attention: bool = True
    frames_per_process: int = 24
    dense_frames: int = 6
    muon_lr: float = 6e-3
    adamw_lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 300
    decay: float = 0.4
    difficulty: float = 0.5
    difficulty_growth: float = 1.004
    difficulty_threshold: float = 0.5

    def rate(self, step: int) -> float:
        """Learning-rate factor: linear warm-up, constant, linear decay to 2 % over the last part."""
        left = (self.steps - step) / (self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup) * min(1.0, 0.02 + 0.98 * left)


class MatmulAttention(TorchFunctionMode):
    """Attention as two batched products: on a CPU its backward is faster than the fused kernel's for small heads."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = (x.flatten(0, 1) for x in args)
        weights = torch.softmax(torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)), dim=-1)
        return torch.bmm(weights.to(v.dtype), v).view(args[0].shape)


def disable_global_attention(model: TrainingModel) -> None:
    """Let each global block see one frame at a time, with its own weights: the control without global attention."""
    special = model.vggt.config.special_tokens
    tokens = special + (model.vggt.config.image_size // model.vggt.config.patch_size) ** 2

    def split(_module, args):
        return args[0].reshape(-1, tokens, args[0].shape[-1]), *args[1:]

    for block in model.vggt.aggregator.global_blocks:
        block.register_forward_pre_hook(split)


def optimisers(model: TrainingModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the transformer blocks, AdamW on everything else (no decay on vectors)."""
    blocks = [model.vggt.aggregator.frame_blocks, model.vggt.aggregator.global_blocks]
    blocks.append(model.vggt.aggregator.patch_embed.blocks)
    matrices = [p for part in blocks for p in part.parameters() if p.ndim == 2]
    taken = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(groups, lr=recipe.adamw_lr, betas=(0.9, 0.98), fused=True)
    for optimiser in (muon, adamw):
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return [muon, adamw]


def average_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, g in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        p.grad = g.view_as(p)


def train_step(model, optims, recipe: Recipe, step: int, difficulty: float, rank: int) -> dict[str, float]:
    """One update on freshly rendered scenes; the scenes depend only on (seed, step, rank)."""
    shared = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    choice = torch.multinomial(torch.tensor(FRAMES_WEIGHTS), 1, generator=shared)
    frames = FRAMES_CHOICES[int(choice)]
    own = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 64 + rank + 1)
    batch = sample_batch(
        own, recipe.frames_per_process // frames, frames, difficulty=difficulty, target_grid=TARGET_GRID
    )
    with MatmulAttention(), torch.autocast("cpu", torch.bfloat16):
        out = model(batch.images, recipe.dense_frames, own)
    loss, scalars = objective(out, batch)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()} at step {step}; lower the learning rates")
    loss.backward()
    average_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optims:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * recipe.rate(step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return scalars | {"loss": float(loss.detach()), "frames": frames}


def mean_over_ranks(value: float) -> float:
    tensor = torch.tensor([value])
    dist.all_reduce(tensor)
    return float(tensor) / dist.get_world_size()


def worker(rank: int, processes: int, recipe: Recipe, out: str) -> None:
    folder = Path(out)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=processes)
    model = TrainingModel(TESTBED)
    initialise(model, torch.Generator().manual_seed(recipe.seed))
    if not recipe.global_attention:
        disable_global_attention(model)
    optims = optimisers(model, recipe)
    state = {"step": 0, "difficulty": recipe.difficulty, "relative_pose": 1.0, "seconds": 0.0}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["recipe"] != asdict(recipe):
            raise SystemExit(f"{checkpoint} belongs to another recipe; choose another --out or delete it")
        model.load_state_dict(saved["model"])
        for optimiser, values in zip(optims, saved["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        state = saved["state"]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=rank > 0, refresh_per_second=0.2) as progress:
        task = progress.add_task("training", total=recipe.steps, completed=state["step"])
        start, before, sums, counted = time.time(), state["seconds"], {}, 0
        while state["step"] < recipe.steps:
            scalars = train_step(model, optims, recipe, state["step"], state["difficulty"], rank)
            state["step"] += 1
            if scalars["frames"] > 1:
                error = mean_over_ranks(scalars["relative_pose"])
                state["relative_pose"] += 0.03 * (error - state["relative_pose"])
                if state["relative_pose"] < recipe.difficulty_threshold:
                    state["difficulty"] = min(1.0, state["difficulty"] * recipe.difficulty_growth)
                sums = {k: sums.get(k, 0.0) + v for k, v in scalars.items()}
                counted += 1
            progress.update(task, advance=1)
            if rank == 0 and (state["step"] % 100 == 0 or state["step"] == recipe.steps):
                state["seconds"] = before + time.time() - start
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(state | {k: round(v / max(counted, 1), 5) for k, v in sums.items()}) + "\n")
                sums, counted = {}, 0
                values = {"recipe": asdict(recipe), "state": state, "model": model.state_dict()}
                values["optimisers"] = [o.state_dict() for o in optims]
                torch.save(values, folder / "checkpoint.tmp")
                os.replace(folder / "checkpoint.tmp", checkpoint)
    if rank == 0:
        export(model, recipe, state, processes, folder / "weights.safetensors")
    dist.destroy_process_group()


def export(model: TrainingModel, recipe: Recipe, state: dict, processes: int, path: Path) -> None:
    """Write the VGGT without the auxiliary heads; configuration and provenance go into the metadata."""
    tensors: dict[str, Tensor] = {k: v.contiguous() for k, v in model.vggt.state_dict().items()}
    provenance = {
        "recipe": asdict(recipe),
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        "processes": processes,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    save_file(tensors, path, metadata={"config": TESTBED.to_json(), "training": json.dumps(provenance)})


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights; an unfinished run there resumes.")],
    steps: Annotated[int, typer.Option(min=1)] = Recipe.steps,
    seed: Annotated[int, typer.Option(min=0)] = Recipe.seed,
    global_attention: Annotated[bool, typer.Option(help="Off: the control, each global block sees one frame.")] = True,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train the testbed VGGT on procedurally rendered scenes."""
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    (out / "rendezvous").unlink(missing_ok=True)
    recipe = Recipe(steps=steps, seed=seed, global_attention=global_attention)
    mp.spawn(worker, args=(processes, recipe, str(out)), nprocs=processes)


if __name__ == "__main__":
    typer.run(main)
