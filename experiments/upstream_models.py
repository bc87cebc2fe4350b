"""Claim: the official VGGT, Pi3, Pi3X and VGGT-Omega are patched by their own classes, exactly and reversibly.

`python -m experiments.upstream_models --vggt PATH --pi3 PATH --omega PATH`: each PATH is a checkout of the public code
(github.com/facebookresearch/vggt, yyfz/Pi3, facebookresearch/vggt-omega) that you fetched, with the packages it imports
(einops for VGGT). What is not given is reported as not run. The models are their own classes with random weights, made
small at construction; nothing of their code is changed. CPU; compiled with the backend --backend.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.lean import lean
from accel.models.checkpoint import load_model
from accel.patch import observe, patch, record
from accel.policies import Exact, Subsample, registry
from accel.sites import layout_of, left_exact, sites
from experiments.live_bytes import peak_bytes
from experiments.verdict import Verdict, report

FRAMES = 4


class Plan:
    """The least that `patch` takes for a schedule: one policy in every layer."""

    def __init__(self, layout: TokenLayout, policy: Any, depth: int):
        self.layout, self.policies = layout, (policy,) * depth


class Through:
    """The model's attention again, but through the seam: what the seam itself costs. No policy of the registry."""

    name = "through the seam"

    def check(self, layout: TokenLayout) -> None:
        pass

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *, scale=None, context=None) -> Tensor:
        return scaled_dot_product_attention(q, k, v, scale=scale)


@contextlib.contextmanager
def autocast_on_cpu() -> Iterator[None]:
    """Autocast to bfloat16, and what a model says of autocast for CUDA (off in the heads, say) holds for the CPU."""
    real = torch.autocast

    def on_cpu(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> torch.autocast:
        return real("cpu", torch.bfloat16, enabled=enabled)

    with mock.patch.object(torch, "autocast", on_cpu), mock.patch.object(torch.amp, "autocast", on_cpu), on_cpu("cpu"):
        yield


# --- the models, small ---


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Weights under which attention matters: residual gains of 0.3 instead of 1e-5, special tokens of size 1.

    VGGT-Omega masks the bias of its keys by a buffer that holds NaN until a checkpoint is loaded: here the mask it
    stands for, one for q and v and zero for k.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("ls1.gamma", "ls2.gamma")):
                tensor.fill_(0.3)
            elif name.endswith(("camera_token", "register_token", "metric_token", "cls_token")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            elif name.endswith("bias_mask"):
                tensor.copy_(torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(len(tensor) // 3))
    return model.eval()


def vggt() -> tuple[nn.Module, dict[str, Any]]:
    """24 layers of 128 channels, one linear map as patch embedding, 70x84 pixels."""
    import vggt.models.vggt as code

    small = partial(code.Aggregator, num_heads=4, patch_embed="conv")
    with mock.patch.object(code, "Aggregator", lambda **kw: small(**kw)):
        return code.VGGT(img_size=84, embed_dim=128, enable_point=False, enable_track=False), {"images": (70, 84)}


def shallow(decoder: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A decoder of one block, whatever depth was asked for."""
    return decoder(**options | {"depth": 1})


def pi3() -> tuple[nn.Module, dict]:
    """Its own "small" decoder (384 channels) cut to 12 blocks, a DINOv2 ViT-S before it, heads of one block."""
    import pi3.models.pi3 as code
    from pi3.models.dinov2.hub.backbones import dinov2_vits14_reg

    decoder = partial(shallow, code.TransformerDecoder)
    with (
        mock.patch.object(code, "dinov2_vitl14_reg", dinov2_vits14_reg),
        mock.patch.object(code, "TransformerDecoder", decoder),
    ):
        model = code.Pi3(decoder_size="small")
    del model.decoder[12:]
    return model, {"images": (70, 84)}


def pi3x() -> tuple[nn.Module, dict]:
    """12 of its 36 blocks of 1024 channels, with narrow MLPs, an encoder of one block; poses are given."""
    import pi3.models.pi3x as code
    from pi3.models.dinov2.models.vision_transformer import DinoVisionTransformer

    def encoder(pretrained: bool) -> nn.Module:
        return DinoVisionTransformer(
            img_size=518, patch_size=14, embed_dim=1024, depth=1, num_heads=16, num_register_tokens=4, init_values=1.0
        )

    block, inject = code.BlockRope, code.PoseInjectBlock
    decoders = {name: getattr(code, name) for name in ("TransformerDecoder", "ContextOnlyTransformerDecoder")}
    with contextlib.ExitStack() as stack:
        for name, new in {
            "dinov2_vitl14_reg": encoder,
            "BlockRope": lambda **kw: block(**kw | {"mlp_ratio": 0.25}),
            "PoseInjectBlock": lambda **kw: inject(**kw | {"mlp_ratio": 0.25}),
            **{name: partial(shallow, old) for name, old in decoders.items()},
        }.items():
            stack.enter_context(mock.patch.object(code, name, new))
        model = code.Pi3X()
    del model.decoder[12:]
    poses = torch.eye(4).repeat(1, FRAMES, 1, 1)
    poses[..., 0, 3] = torch.arange(FRAMES)
    return model, {"images": (70, 84), "poses": poses}


def omega() -> tuple[nn.Module, dict]:
    """24 inter-frame blocks of 128 channels and 16 heads; patches of 16 pixels."""
    from vggt_omega.models import VGGTOmega

    return VGGTOmega(embed_dim=128), {"images": (80, 96)}


MODELS: dict[str, tuple[str, Callable[[], tuple[nn.Module, dict]]]] = {
    "VGGT (official)": ("vggt", vggt),
    "Pi3": ("pi3", pi3),
    "Pi3X, given poses": ("pi3", pi3x),
    "VGGT-Omega": ("omega", omega),
}


# --- what is asked of each ---


def tensors(output: Any) -> list[Tensor]:
    """All tensors of a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def identical(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest relative rms difference of a pair of tensors, infinite where one is not finite."""
    found = [
        ((x.float() - y.float()).norm() / y.float().norm().clamp_min(1e-12)).item() for x, y in zip(a, b, strict=True)
    ]
    return max(x if math.isfinite(x) else math.inf for x in found)


def untouched(model: nn.Module) -> bool:
    """No forward of an instance and no hook anywhere."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return not any("forward" in vars(m) or any(vars(m)[h] for h in hooks) for m in model.modules())


@torch.no_grad()
def examine(name: str, path: Path, backend: str, seed: int) -> dict[str, Any]:
    """Every question of the claim, answered for one model; in a process of its own, for the sake of the imports."""
    sys.path.insert(0, str(path))
    model, inputs = MODELS[name][1]()
    randomise(model, seed)
    size = inputs.pop("images")
    images = torch.rand(1, FRAMES, 3, *size, generator=torch.Generator().manual_seed(seed + 1))

    def run() -> list[Tensor]:
        return tensors(model(images, **inputs))

    def run_half() -> list[Tensor]:
        with autocast_on_cpu():
            return run()

    layout, found = layout_of(model, images), sites(model)
    depth = len(found)
    exact = Plan(layout, Exact(), depth)
    row: dict[str, Any] = {
        "layout": layout.to_dict(),
        "sites": depth,
        "left_exact": list(left_exact(model)),
        "parameters_million": sum(p.numel() for p in model.parameters()) / 1e6,
    }

    dense = run()
    row["dense_finite"] = all(x.isfinite().all().item() for x in dense)
    with patch(model, exact):
        row["exact_identical"] = identical(run(), dense)
    with patch(model, Plan(layout, Through(), depth)) as applied:
        row["through_the_seam"] = difference(run(), dense)
    row["every_site_called_once"] = applied.calls == [1] * depth

    normed: list[Tensor] = []
    seen: list[Tensor | None] = []
    norms = [block.norm1 for block in blocks_of(model)]
    with (
        observe(norms, lambda i, args, output: normed.append(output)),
        record(model, lambda context, q, k, v: seen.append(context.tokens)),
    ):
        row["record_identical"] = identical(run(), dense)
    row["tokens_are_norm1"] = len(seen) == depth and all(a is b for a, b in zip(seen, normed, strict=True))
    row["tokens_shape_right"] = all(x is not None and x.shape[:2] == (1, layout.tokens) for x in seen)

    dense_half = run_half()
    with patch(model, exact):
        row["exact_identical_bf16"] = identical(run_half(), dense_half)
    row["policies"], row["restored"], ran = [], True, set()
    for policy in (p for cls in registry().values() for p in cls.examples()):
        about: dict[str, Any] = policy.to_dict()
        row["policies"].append(about)
        try:
            with patch(model, Plan(layout, policy, depth)) as applied:
                about["difference"] = difference(run(), dense)
                if policy.name not in ran:  # one example of each kind in bfloat16
                    about["difference_bf16"] = difference(run_half(), dense_half)
        except AccelError as error:
            about["cannot"] = str(error)
            continue
        forwards = 1 + ("difference_bf16" in about)
        about["ran"] = policy.name == "exact" or (applied.calls == [forwards] * depth and not applied.fallbacks)
        row["restored"] &= untouched(model) and (policy.name in ran or identical(run(), dense))
        ran.add(policy.name)
    row["kinds"], row["kinds_run"] = sorted(registry()), sorted(ran)

    plan = Plan(layout, Subsample(stride=4), depth)
    with patch(model, plan):
        eager = run()
    row["compiled"] = compiled(model, plan, run, dense, eager, backend)
    if hasattr(getattr(model, "aggregator", None), "aa_order"):
        row["lean"] = leanness(model, run, dense)
    return row


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks around the sites."""
    return [model.get_submodule(site.name.removesuffix(".attn")) for site in sites(model)]


def compiled(model, schedule, run, dense, eager, backend) -> dict[str, Any]:
    """Every block that holds a site is compiled: plain, patched and plain again, against the same in eager mode."""
    blocks = blocks_of(model)
    for block in blocks:
        block.compile(backend=backend)
    try:
        before = difference(run(), dense)
        with patch(model, schedule) as applied:
            inside = max(difference(run(), eager) for _ in range(2))
        after = difference(run(), dense)
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()
    calls = applied.calls == [2] * len(blocks)
    return {"backend": backend, "dense": before, "patched": inside, "restored": after, "calls": calls}


def leanness(model, run, dense) -> dict[str, Any]:
    """Peak of live bytes of the official aggregator with and without `lean`, and the same bits."""
    with lean(model) as kept:
        same = identical(run(), dense)
    images = torch.rand(1, 16, 3, 70, 84, generator=torch.Generator().manual_seed(7))
    full = peak_bytes(model.aggregator, images)
    with lean(model):
        less = peak_bytes(model.aggregator, images)
    with lean(model), patch(model, Plan(layout_of(model, images), Through(), len(sites(model)))):
        both = peak_bytes(model.aggregator, images)
    return {"identical": same, "kept": list(kept), "plain_bytes": full, "lean_bytes": less, "lean_patched_bytes": both}


def overhead(frames: int, repeats: int) -> dict[str, float]:
    """Median seconds of interleaved forwards of the testbed: as it is, patched all-exact, and all through the seam."""
    model = load_model("testbed")
    images = torch.rand(1, frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layout, depth = layout_of(model, images), len(sites(model))
    ways = {
        "plain": contextlib.nullcontext(),
        "all exact": patch(model, Plan(layout, Exact(), depth)),
        "through the seam": patch(model, Plan(layout, Through(), depth)),
        "plain again": contextlib.nullcontext(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            with way:
                start = time.perf_counter()
                model(images)
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)) for name in ways
    }
    return {"frames": frames, "plain_seconds": statistics.median(seconds["plain"]), **ratios}


def verdicts_of(name: str, row: dict[str, Any]) -> list[Verdict]:
    """The claims of one model."""

    def yes(claim: str, value: bool) -> Verdict:
        return Verdict(f"{name}: {claim}", float(value), 1.0, bool(value))

    def below(claim: str, value: float, bound: float) -> Verdict:
        return Verdict(f"{name}: {claim}", value, bound, value <= bound)

    ran = [p for p in row["policies"] if "ran" in p]
    finite = [max(p["difference"], p.get("difference_bf16", 0.0)) < math.inf and p["ran"] for p in ran]
    traced = row["compiled"]
    found = [
        yes("the plain forward is finite", row["dense_finite"]),
        yes("all exact and record are bit-identical, in float32", row["exact_identical"] and row["record_identical"]),
        yes("all exact is bit-identical under autocast", row["exact_identical_bf16"]),
        yes("each site is called once per forward", row["every_site_called_once"]),
        yes("context.tokens is the output of norm1, (B, N, C)", row["tokens_are_norm1"] and row["tokens_shape_right"]),
        Verdict(f"{name}: policies run and finite, of {len(ran)}", sum(finite), len(ran), all(finite)),
        Verdict(
            f"{name}: kinds of policy with an example that fits, of {len(row['kinds'])}",
            len(row["kinds_run"]),
            len(row["kinds"]),
            row["kinds_run"] == row["kinds"],
        ),
        yes("leaving restores the bits and leaves no hook", row["restored"]),
        below(f"compiled ({traced['backend']}) and patched against eager", traced["patched"], 1e-4),
        below(f"compiled ({traced['backend']}) and unpatched again", traced["restored"], 1e-4),
        yes("the policy is called in the compiled blocks", traced["calls"]),
    ]
    if "lean" in row:
        less = row["lean"]
        found += [
            yes("lean is bit-identical", less["identical"]),
            below("peak live bytes of the aggregator, lean over plain", less["lean_bytes"] / less["plain_bytes"], 0.5),
        ]
    return found


@torch.no_grad()
def main(
    vggt: Annotated[Path | None, typer.Option(help="Checkout of facebookresearch/vggt.")] = None,
    pi3: Annotated[Path | None, typer.Option(help="Checkout of yyfz/Pi3.")] = None,
    omega: Annotated[Path | None, typer.Option(help="Checkout of facebookresearch/vggt-omega.")] = None,
    backend: Annotated[str, typer.Option(help='For torch.compile; "eager" needs no compiler.')] = "eager",
    frames: Annotated[str, typer.Option(help="Frames of the testbed for the overhead.")] = "8,32",
    repeats: Annotated[int, typer.Option(min=1)] = 20,
    processes: Annotated[int, typer.Option(min=1, help="Models examined at once.")] = 2,
    out: Annotated[Path, typer.Option()] = Path("experiments/results/upstream_models.json"),
) -> None:
    """Examine what was given, print a table and the verdicts."""
    given = {"vggt": vggt, "pi3": pi3, "omega": omega}
    columns = ("model", "sites", "left exact", "tokens", "policies", "compiled", "lean / plain")
    table, rows, verdicts = Table(*columns), {}, []
    paths = {name: given[key] for name, (key, _) in MODELS.items()}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {name: pool.submit(examine, name, path, backend, 0) for name, path in paths.items() if path is not None}
        done = {name: job.result() for name, job in jobs.items()}
    for name, (key, _) in MODELS.items():
        if name not in done:
            rows[name] = f"not run: give --{key}"
            table.add_row(name, rows[name])
            continue
        row = rows[name] = done[name]
        verdicts += verdicts_of(name, row)
        less = row.get("lean")
        table.add_row(
            name,
            str(row["sites"]),
            str(len(row["left_exact"])),
            str(TokenLayout.from_dict(row["layout"]).tokens),
            str(sum("ran" in p for p in row["policies"])),
            f"{row['compiled']['patched']:.1e}",
            "-" if less is None else f"{less['lean_bytes'] / less['plain_bytes']:.2f}",
        )
    costs = [overhead(int(n), repeats) for n in frames.split(",")]
    for cost in costs:
        claim = f"testbed, {cost['frames']} frames: all exact over unpatched, time"
        verdicts.append(Verdict(claim, cost["all exact"], 1.02, cost["all exact"] <= 1.02))
    Console(width=120).print(table)
    report(verdicts, out, models=rows, overhead=costs)


if __name__ == "__main__":
    typer.run(main)
