"""Claim: 20,000 tokens pass 24 layers of exact float64 attention in 60 s on 2 cores, in memory linear in N.

`python -m experiments.particle_speed [--sizes 5000 10000 20000] [--layers 24] [--workers 2]`. Pre-LN layers of i.i.d.
uniform tokens in d = 64, observed after every layer. Each size runs in a fresh process, with one BLAS thread per
worker; CPU seconds are reported because they, unlike the wall clock, do not depend on what else the machine does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from experiments.verdict import Verdict, report

RUN = """
import json, sys, time
import numpy as np
from meanfield.particles import Dynamics, simulate

def peak_mib():
    # not getrusage, whose maximum a child inherits from the process that started it
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

tokens, dim, layers, workers = map(int, sys.argv[1:])
x = np.random.default_rng(0).standard_normal((tokens, dim))
idle = peak_mib()
wall, cpu = time.perf_counter(), time.process_time()
solution = simulate(x, Dynamics(beta=1.0), layers=layers, workers=workers)
print(json.dumps({
    "wall_s": time.perf_counter() - wall,
    "cpu_s": time.process_time() - cpu,
    "peak_mib": peak_mib(),
    "idle_mib": idle,
    "spread": float(solution.data.spread[-1]),
}))
"""


def measure(tokens: int, dim: int, layers: int, workers: int) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one simulation in a process of its own."""
    command = [sys.executable, "-c", RUN, *map(str, (tokens, dim, layers, workers))]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main(
    sizes: Annotated[list[int], typer.Option(help="Numbers of tokens N.")] = (5000, 10_000, 20_000),
    dim: Annotated[int, typer.Option(min=2)] = 64,
    layers: Annotated[int, typer.Option(min=1)] = 24,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path("experiments/results/particle_speed.json"),
) -> None:
    """Print the table and write the numbers."""
    rows = {tokens: measure(tokens, dim, layers, workers) for tokens in sorted(sizes)}
    table = Table(
        "N", "wall s", "CPU s", "peak MiB", "of which simulation", title=f"{layers} layers, d={dim}, {workers} workers"
    )
    for tokens, row in rows.items():
        cells = (row["wall_s"], row["cpu_s"], row["peak_mib"], row["peak_mib"] - row["idle_mib"])
        table.add_row(f"{tokens:,}", *(f"{cell:.1f}" for cell in cells))
    console = Console()
    console.print(table)
    load = os.getloadavg()[0]
    console.print(f"load average {load:.1f} on {os.cpu_count()} cores")
    largest = rows[max(rows)]
    verdicts = [
        Verdict(f"wall seconds of {layers} layers at N={max(rows)}", largest["wall_s"], 60.0, largest["wall_s"] < 60.0),
        Verdict(
            f"CPU seconds over {workers} workers at N={max(rows)}",
            largest["cpu_s"] / workers,
            60.0,
            largest["cpu_s"] / workers < 60.0,
        ),
    ]
    if len(rows) > 1:
        own = [row["peak_mib"] - row["idle_mib"] for row in rows.values()]
        exponent = float(np.polyfit(np.log(list(rows)), np.log(own), 1)[0])
        verdicts.append(Verdict("exponent of the simulation's memory in N at most 1.1", exponent, 1.1, exponent <= 1.1))
    report(verdicts, out, runs={str(n): row for n, row in rows.items()}, load_average=load, dim=dim, layers=layers)


if __name__ == "__main__":
    typer.run(main)
