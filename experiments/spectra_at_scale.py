"""The top 16 singular values of one attention head at N = 1e5: cost, memory, accuracy.

Claims: they take at most 12 attention forwards (4 N^2 D operations each), counted and in seconds, and bounded memory;
where the dense matrix can be decomposed (N <= 4,000: trained heads, and synthetic ones) they are right within 1e-4, and
within their own error. `python -m experiments.spectra_at_scale [--tokens 100000] [--threads 2]`.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from accel.models.checkpoint import load_model
from accel.patch import record
from accel.spectra import NOISE, attention_spectrum
from experiments.testbed.held_out import held_out_generator
from experiments.testbed.scenes import sample_batch
from experiments.verdict import Verdict, report

COUNT = 16
FORWARDS = 12
ACCURACY = 1e-4
MEMORY_GB = 4.0
"""At N = 1e5 the matrix itself has 40 GB in float32."""


def synthetic(kind: str, tokens: int, seed: int, dim: int = 64) -> tuple[Tensor, Tensor]:
    """q, k (1, N, D) of one head: "gaussian" independent queries and keys, a slow decay; "latent": the tokens of a
    scene with three coordinates, plus noise; "collapsed": all near one direction."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "gaussian":
        return 1.5 * normal(1, tokens, dim), normal(1, tokens, dim)
    if kind == "latent":
        x = normal(1, tokens, 3) @ normal(3, dim) / 3**0.5 + 0.3 * normal(1, tokens, dim)
    else:
        x = 1 + 0.25 * normal(1, tokens, dim)
    x = normalize(x, dim=-1) * dim**0.5
    return 1.2 * x, x


def small_heads(frames: int, tokens: int, scenes: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Heads whose matrix can be decomposed: every second head of the testbed's layers, and the synthetic kinds."""
    model = load_model("testbed")
    for scene in range(scenes):
        images = sample_batch(held_out_generator(800_000 + scene), 1, frames).images
        layers: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad(), record(model, lambda context, q, k, v, layers=layers: layers.append((q, k))):
            model(images)
        for layer, (q, k) in enumerate(layers):
            for head in range(0, q.shape[1], 2):
                yield f"testbed, scene {scene}, layer {layer}, head {head}", q[0, head, None], k[0, head, None]
    for kind in ("gaussian", "latent", "collapsed"):
        yield kind, *synthetic(kind, tokens, 1)


def measure(q: Tensor, k: Tensor):
    return attention_spectrum(q, k, generator=torch.Generator().manual_seed(0), count=COUNT, ranks=False)


def compare(q: Tensor, k: Tensor) -> dict[str, float]:
    """Against the dense matrix in float64: largest relative error, error over what was declared, forwards."""
    A = torch.softmax(q[0].double() @ k[0].double().mT * q.shape[-1] ** -0.5, -1)
    exact = torch.linalg.eigvalsh(A @ A.mT).flip(0)[:COUNT].clamp_min(0).sqrt().numpy()
    found = measure(q, k)
    s, se = (found[name].values[0] for name in ("singular_value", "singular_value_se"))
    rounding = NOISE * torch.finfo(torch.float32).eps * exact[0]
    return {
        "tokens": q.shape[1],
        "relative_error": float(np.abs(s / exact - 1).max()),
        "error_over_declared": float((np.abs(s - exact) / (se + rounding)).max()),
        "declared": float((se / s).max()),
        "forwards": found.attention_forwards,
    }


def at_scale(tokens: int, threads: int, kind: str) -> dict:
    """One head of `tokens`, in a process of its own: its values, seconds beside those of a forward, peak memory."""
    torch.set_num_threads(threads)
    q, k = synthetic(kind, tokens, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def forward() -> float:
        start = time.perf_counter()
        scaled_dot_product_attention(q[None], k[None], k[None])
        return time.perf_counter() - start

    forwards = [forward()]
    start = time.perf_counter()
    found = measure(q, k)
    seconds = time.perf_counter() - start
    forwards.append(forward())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tokens": tokens,
        "kind": kind,
        "threads": threads,
        "seconds": seconds,
        "forward_seconds": forwards,
        "peak_gb": peak * 1024 / 1e9,
        "peak_before_gb": before * 1024 / 1e9,
        "forwards": found.attention_forwards,
        "singular_value": found.singular_value.values[0].tolist(),
        "singular_value_se": found.singular_value_se.values[0].tolist(),
        "residual": found.singular_value_residual.values[0].tolist(),
    }


def main(
    tokens: Annotated[int, typer.Option(help="Of the large head.")] = 100_000,
    kind: Annotated[str, typer.Option(help="gaussian, latent or collapsed: the large head.")] = "latent",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    frames: Annotated[int, typer.Option(help="Of the testbed's heads, 68 tokens each.")] = 32,
    small: Annotated[int, typer.Option(help="Tokens of the small synthetic heads.")] = 4_000,
    scenes: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path, typer.Option(help="JSON.")] = Path("experiments/results/spectra_at_scale.json"),
) -> None:
    """Compare with dense decompositions, then measure one large head in a process of its own."""
    torch.set_num_threads(threads)
    checks = {}
    for name, q, k in small_heads(frames, small, scenes):
        checks[name] = compare(q, k)
        print(name, {key: f"{value:.3g}" for key, value in checks[name].items()}, flush=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        large = pool.apply(at_scale, (tokens, threads, kind))
    print({key: value for key, value in large.items() if not isinstance(value, list)}, flush=True)
    worst = {key: max(check[key] for check in checks.values()) for key in ("relative_error", "error_over_declared")}
    ratio = large["seconds"] / float(np.mean(large["forward_seconds"]))
    claims = [
        (f"forwards counted for {COUNT} values at N = {tokens:,}, D = 64", large["forwards"], FORWARDS),
        (f"seconds over those of a forward, N = {tokens:,}, {threads} threads", ratio, FORWARDS),
        (f"peak resident memory at N = {tokens:,}, GB", large["peak_gb"], MEMORY_GB),
        (
            f"relative error of {COUNT} values, worst of {len(checks)} heads of N <= 4,000",
            worst["relative_error"],
            ACCURACY,
        ),
        (
            f"error over the declared one (last step and rounding), worst of {len(checks)}",
            worst["error_over_declared"],
            1.0,
        ),
        (
            "declared relative error at scale",
            max(np.divide(large["singular_value_se"], large["singular_value"])),
            ACCURACY,
        ),
    ]
    verdicts = [Verdict(claim, float(value), bound, bool(value <= bound)) for claim, value, bound in claims]
    report(verdicts, out, checks=checks, large=large)


if __name__ == "__main__":
    typer.run(main)
