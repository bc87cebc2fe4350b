"""Which kernel should `attend` use? Time, rate and error of every way to weigh keys, beside plain attention.

`python -m experiments.kernel_speed [--device cuda|cpu] [--tokens 10000,100000,1000000] [--dtype bfloat16]`. For each
number of keys the variants run in turn, several times over; the medians are compared. Errors are against float64 on a
few queries. The claims: the path that `attend` takes is within a tenth of the fastest variant that gives lse and
mass, and its error is at most twice that of the plain kernel.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import _blockwise, _efficient_cuda, _flash_cuda, _mass_channels, _widen, attend, attend_naive
from accel.flex import flex_kernel, flex_mass
from experiments.verdict import Verdict, report


def variants(q: Tensor, k: Tensor, v: Tensor, mass: Tensor) -> dict[str, tuple[bool, bool, Callable]]:
    """Calls by name, with whether they return lse and whether they take log-mass."""
    scale = q.shape[-1] ** -0.5
    full = mass.expand(k.shape[:3])
    cpu = q.device.type == "cpu"
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found = {
        "sdpa": (False, False, lambda: scaled_dot_product_attention(q, k, v)),
        "attend": (True, False, lambda: attend(q, k, v)),
        "attend, mass": (True, True, lambda: attend(q, k, v, log_mass=mass)),
        "sdpa, mask": (
            False,
            True,
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=full.unsqueeze(2).to(q.dtype)),
        ),
    }
    if cpu:

        def channels() -> tuple[Tensor, Tensor]:
            q_, k_ = _mass_channels(q, k, mass, scale)
            out, lse = flash(q_, k_, _widen(v, q_.shape[-1]), scale=scale)
            return out[..., : v.shape[-1]], lse

        found["flash, channels"] = (True, True, channels)
        found["blocks of queries"] = (True, True, lambda: _blockwise(q, k, v, mass, scale, None))
    else:
        if q.dtype != torch.float32:
            found["flash, channels"] = (True, True, lambda: _flash_cuda(q, k, v, mass, scale))
        found["efficient, bias"] = (True, True, lambda: _efficient_cuda(q, k, v, mass, scale))
        kernel = flex_kernel(str(q.device), q.dtype, q.shape[1], q.shape[-1], None)
        if kernel is not None:
            found["flex, score_mod"] = (True, True, lambda: flex_mass(q, k, v, full, scale, kernel=kernel))
    return found


def seconds(call: Callable, device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def measure(
    keys: int, queries: int, H: int, D: int, dtype: torch.dtype, device: torch.device, repeats: int
) -> list[dict]:
    """One row per variant: seconds, TFLOP/s, time over plain attention, error over plain attention's."""
    generator = torch.Generator().manual_seed(keys)
    q, k, v = (torch.randn((1, H, n, D), generator=generator).to(device, dtype) for n in (queries, keys, keys))
    mass = torch.rand((1, H, keys), generator=generator).to(device).mul(3).exp().ceil().log()
    calls, rows = variants(q, k, v, mass), []
    few = q[:, :, :4]
    want = {weighted: attend_naive(few, k, v, log_mass=mass if weighted else None)[0] for weighted in (False, True)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, (_, _, call) in calls.items():
            taken = seconds(call, device)
            if repeat:
                times[name].append(taken)
    for name, (gives_lse, weighted, call) in calls.items():
        out = call()
        out = (out if isinstance(out, Tensor) else out[0])[:, :, :4].double()
        wrong = ((out - want[weighted]).square().mean() / want[weighted].square().mean()).sqrt().item()
        median = statistics.median(times[name])
        rows.append(
            {
                "keys": keys,
                "variant": name,
                "lse": gives_lse,
                "mass": weighted,
                "seconds": median,
                "tflops": 4e-12 * queries * keys * D * H / median,
                "ratio": median / statistics.median(times["sdpa"]),
                "error": wrong,
            }
        )
    return rows


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    tokens: Annotated[str, typer.Option(help="Numbers of keys, separated by commas.")] = "10000,100000,1000000",
    dtype: Annotated[str, typer.Option(help="default: float32 on the CPU, bfloat16 on CUDA")] = "",
    queries: Annotated[int, typer.Option(min=0, help="0: 256 on the CPU, 16384 on CUDA")] = 0,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    dim: Annotated[int, typer.Option(min=1)] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    out: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Print and write the table of one device."""
    where = torch.device(device)
    kind = getattr(torch, dtype or ("bfloat16" if where.type == "cuda" else "float32"))
    queries = queries or (16384 if where.type == "cuda" else 256)
    rows: list[dict] = []
    for count in map(int, tokens.split(",")):
        if where.type == "cuda":
            torch.cuda.empty_cache()
        budget = repeats if count <= 100_000 or where.type == "cuda" else max(1, repeats // 3)
        rows += measure(count, queries, heads, dim, kind, where, budget)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    table = Table("keys", "variant", "lse", "mass", "s", "TFLOP/s", "over sdpa", "error", title=f"{name}, {kind}")
    for row in rows:
        numbers = f"{row['seconds']:.4f}", f"{row['tflops']:.3f}", f"{row['ratio']:.2f}", f"{row['error']:.1e}"
        table.add_row(str(row["keys"]), row["variant"], *("yes" if row[x] else "" for x in ("lse", "mass")), *numbers)
    Console(width=120).print(table)

    verdicts = []
    for count in dict.fromkeys(row["keys"] for row in rows):
        here = {row["variant"]: row for row in rows if row["keys"] == count}
        chosen = here["attend, mass"]
        fastest = min(row["seconds"] for row in here.values() if row["lse"] and row["mass"])
        ratio = chosen["seconds"] / fastest
        verdicts.append(Verdict(f"{count} keys: attend with mass over the fastest variant", ratio, 1.1, ratio <= 1.1))
        wrong = chosen["error"] / here["sdpa"]["error"]
        verdicts.append(Verdict(f"{count} keys: its error over the plain kernel's", wrong, 2.0, wrong <= 2.0))
    out = Path(f"experiments/results/kernel_speed_{where.type}.json") if out is None else out
    date = time.strftime("%Y-%m-%d", time.gmtime())
    report(verdicts, out, rows=rows, device=name, dtype=str(kind), queries=queries, heads=heads, dim=dim, date=date)


if __name__ == "__main__":
    typer.run(main)
