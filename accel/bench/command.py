"""The command `accel bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def bench(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; the same folder continues.")],
    profile: Annotated[str, typer.Option(help="cpu (minutes on 2 cores), gpu (VGGT-1B), or quick (a minute).")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    limit: Annotated[float, typer.Option(help="Seconds of this call; what does not fit is left for the next.")] = 520.0,
    only: Annotated[
        str | None, typer.Option(help="Suites, separated by commas: kernels, model, memory, spectra.")
    ] = None,
    scale: Annotated[str, typer.Option(help="full, or small: the gpu profile at sizes for a CPU.")] = "full",
    retry: Annotated[bool, typer.Option("--retry", help="Run failed and out-of-memory cases again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The last line of stdout is a summary as JSON.")] = False,
) -> None:
    """Time, memory and error of every policy and published rule beside dense attention, on this machine."""
    from accel.bench.runner import bench as job
    from accel.bench.tables import footnotes, summary, tables

    progress = Console(stderr=True)
    results = job(
        out, profile=profile, scale=scale, device=device, limit=limit, only=only, retry=retry, console=progress
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for table in tables(results):
        console.print(table)
    for note in footnotes(results):
        console.print(note, highlight=False)
    console.print(f"{out / 'results.json'}, {out / 'bench.png'}", highlight=False)
    if as_json:
        typer.echo(json.dumps(summary(results)))
