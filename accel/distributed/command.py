"""The command that torchrun starts on every rank: photographs, shared out over the ranks, to one prediction.

    torchrun --standalone --nproc-per-node 2 -m accel.distributed PHOTOS --out DIR --weights testbed

Every rank reads its own photographs only and writes its part, part-00000.npz and so on, as soon as its heads are done;
rank 0 joins the parts into predictions.npz (the arrays that `accel run` writes), with schedule.json and results.json. A
run that was cut off is started again from the beginning; parts that were complete stay readable until then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel.console import Budget, DeviceName, Out, Tolerance, Weights, guarded, integer
from accel.errors import AccelError
from accel.parse import parse_budget, parse_tolerance

DTYPES = ("float32", "bfloat16")


@guarded
def distributed(
    images: Annotated[list[Path], typer.Argument(help="Photographs of one place, or folders of them.")],
    out: Out,
    weights: Weights = "testbed",
    schedule: Annotated[Path | None, typer.Option(help="schedule.json for as many frames.")] = None,
    profile: Annotated[Path | None, typer.Option(help="profile.nc of an earlier run, to plan from.")] = None,
    budget: Budget = None,
    tolerance: Tolerance = None,
    published: Annotated[str | None, typer.Option(help="A paper's setting, such as avggt.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the trunk: float32 or bfloat16.")] = "float32",
    device: DeviceName = "auto",
    frames: Annotated[int | None, typer.Option(parser=integer, help="Use so many photographs at most.")] = None,
    frames_per_chunk: Annotated[int | None, typer.Option(parser=integer, help="Frames processed at once.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a rank waits for another.")] = 600.0,
) -> None:
    """One prediction from several processes, each with its share of the frames; attention is exact without a schedule.

    Give at most one of --schedule, --profile (with --budget or --tolerance) and --published.
    """
    asked = {"--schedule": schedule, "--profile": profile, "--published": published}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise AccelError(f"{' and '.join(given)} were given; give at most one of them")
    speed_up, within = parse_budget(budget), parse_tolerance(tolerance)
    if profile is None and not (speed_up is within is None):
        raise AccelError("--budget and --tolerance plan from a probe; give its --profile profile.nc")
    if dtype not in DTYPES:
        raise AccelError(f'dtype "{dtype}" is not one of {", ".join(DTYPES)}')
    if frames_per_chunk is not None and frames_per_chunk < 1:
        raise AccelError(f"frames_per_chunk={frames_per_chunk} must be at least 1")
    from accel.distributed.job import Job, run
    from accel.distributed.launch import joined

    goal = {"schedule": schedule, "profile": profile, "budget": speed_up, "tolerance": within, "published": published}
    sizes = {"dtype": dtype, "frames": frames, "frames_per_chunk": frames_per_chunk}
    job = Job(tuple(images), out, weights, **goal, **sizes)
    try:
        with joined(device, seconds=timeout) as (ranks, place):
            found = run(job, ranks, place)
    except KeyboardInterrupt:
        typer.echo("interrupted; start the same command again", err=True)
        raise typer.Exit(130) from None
    if found is not None:
        sent = sum(found["sent_bytes_per_frame"].values())
        typer.echo(
            f"{sum(found['frames'])} frames on {ranks.size} ranks: {max(found['seconds']):.3g} s, of which at most "
            f"{max(found['seconds_waited']):.3g} s waiting for other ranks; {sent / 2**20:.3g} MiB sent per frame"
        )
        typer.echo(f"predictions: {out / 'predictions.npz'}")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(distributed)


def main() -> None:
    """`python -m accel.distributed`."""
    app(prog_name="python -m accel.distributed")
