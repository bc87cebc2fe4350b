"""The command line: accel run | demo | predict | plan | validate | estimate | calibrate | bench.

The first five are here, the others beside their subject; `accel.console` has what they share.
"""

from __future__ import annotations

import math
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from accel.bench.command import bench
from accel.calibrate import calibrate
from accel.console import (
    AsJson,
    Budget,
    DeviceName,
    DType,
    Memory,
    Out,
    Tolerance,
    Weights,
    guarded,
    integer,
    print_json,
    print_table,
    refuse,
)
from accel.errors import AccelError
from accel.estimate import command as estimate
from accel.parse import MAX_FRAMES, check_device, parse_budget, parse_bytes, parse_frames, parse_tolerance

if TYPE_CHECKING:  # torch takes seconds to import: --help and bad usage do not wait for it
    import xarray as xr

    from accel.run import RunResult


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Photographs to cameras, depth and points, by attention that is as cheap as a prediction allows.",
    epilog="Begin with: accel demo --out results. Then: accel run PHOTOS --out results --budget 2x.",
)

UsageError = typer.BadParameter.__bases__[0]  # click's class; recent releases of typer bring a copy of click


def demo_folder() -> Path:
    """The scene that comes with the package."""
    folder = Path(str(resources.files("accel") / "data" / "scene"))
    if not folder.is_dir():
        raise AccelError(f"this installation has no demo scene ({folder}); install the package again, or give images")
    return folder


@app.command()
@guarded
def run(
    out: Out,
    images: Annotated[list[Path] | None, typer.Argument(help="Photographs of one place, or folders of them.")] = None,
    weights: Weights = "testbed",
    budget: Budget = None,
    tolerance: Tolerance = None,
    device: DeviceName = "auto",
    probe_frames: Annotated[
        int, typer.Option(parser=integer, help="How many of the first photographs the probe sees.")
    ] = 4,
    frames: Annotated[
        int | None, typer.Option(parser=integer, help="Use so many photographs at most, evenly spread.")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense/--no-dense", help="Run the dense model beside it.")] = True,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Measure the attention spectra.")] = True,
    demo: Annotated[bool, typer.Option("--demo", help="Use the scene that comes with the package.")] = False,
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(parser=integer, help="Seed of everything random.")] = 0,
    dtype: DType = "auto",
    memory: Memory = None,
) -> None:
    """Photographs to cameras, depth and points, planned from a probe, beside the dense result, on one page."""
    if demo and images:
        raise AccelError("--demo brings its own images; leave out yours or --demo")
    goal = {"budget": parse_budget(budget), "tolerance": parse_tolerance(tolerance)}
    check_device(device)
    from accel.run import Settings, check_folder

    asked = goal | {"weights": weights, "device": device, "dtype": dtype, "memory": parse_bytes(memory), "seed": seed}
    asked |= {"frames": frames, "probe_frames": probe_frames, "dense": dense, "spectra": spectra}
    Settings(**asked)
    check_folder(out)
    from accel.run import run as job

    result = job([demo_folder()] if demo else images or [], out, **asked, console=Console(stderr=True))
    _show(result, as_json)


@app.command()
@guarded
def demo(out: Out, budget: Budget = None, tolerance: Tolerance = None, as_json: AsJson = False) -> None:
    """The bundled model on the bundled scene, whose true cameras and depths are known."""
    goal = {"budget": parse_budget(budget), "tolerance": parse_tolerance(tolerance)}
    from accel.run import run as job

    _show(job([demo_folder()], out, **goal, console=Console(stderr=True)), as_json)


@app.command()
@guarded
def predict(
    frames: Annotated[str, typer.Option(help="Numbers of frames, such as 8 or 8,16,32.")],
    params: Annotated[
        str, typer.Option("--params", "--weights", help="Preset of the theory: vggt-init or testbed.")
    ] = "vggt-init",
    profile: Annotated[Path | None, typer.Option(help="profile.nc of an earlier run, instead of a preset.")] = None,
    as_json: AsJson = False,
) -> None:
    """The attention ranks to expect at a number of frames, without running a model."""
    counts = parse_frames(frames)
    from meanfield import predict_rank, preset

    try:
        if profile is not None:
            from accel.profile import Profile

            chosen = Profile.load(profile).rank_params(name=str(profile))
        else:
            chosen = preset(params)
        tokens = [count * chosen.tokens_per_frame for count in counts]
        ranks = predict_rank(chosen.layers, tokens, params=chosen)
    except ValueError as error:
        raise AccelError(str(error)) from error
    names = ("attention_effective_rank", "attention_stable_rank", "entropy", "token_effective_rank")
    if as_json:
        suffixes = ("", "_low", "_high") if bool(ranks["entropy_se"].notnull().any()) else ("",)
        found = {name + end: ranks[name + end].values.T.tolist() for name in names for end in suffixes}
        exponents = ("depth_exponent", "depth_exponent_low", "depth_exponent_high")
        print_json(
            {"params": chosen.name, "frames": counts, "tokens": tokens}
            | {key: ranks.attrs[key] for key in ("method", "interval", "level")}
            | found
            | {name: ranks[name].values.tolist() for name in exponents}
            | {"power_law": ranks.attrs["power_law"]}
        )
        return
    titles = ("effective rank", "stable rank", "entropy, nats", "tokens' effective rank")
    table = Table(
        title=f"{chosen.name}: {ranks.attrs['method']}, means over {chosen.heads} heads",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for title in ("layer", "frames", *titles):
        table.add_column(title, justify="right")
    for layer in range(chosen.layers):
        for column, count in enumerate(counts):
            cells = (_with_error(ranks, name, layer, column) for name in names)
            table.add_row(str(layer) if column == 0 else "", str(count), *cells)
    console = Console()
    console.print(table)
    console.print(f"±: standard error of prediction. Interval: {ranks.attrs['interval']}.", highlight=False)
    console.print(f"Decay of the spread with depth: {ranks.attrs['power_law']}.", highlight=False)


def _with_error(ranks: xr.Dataset, name: str, layer: int, column: int) -> str:
    """One predicted value with its standard error, where that is known."""
    value, error = (float(ranks[key].values[layer, column]) for key in (name, f"{name}_se"))
    if math.isnan(error):
        return f"{value:.4g}"
    decimals = max(1 - math.floor(math.log10(error)), 0) if error > 0.0 else 2
    return f"{value:.{decimals}f}±{error:.{decimals}f}"


@app.command()
@guarded
def plan(
    profile: Annotated[Path, typer.Argument(help="profile.nc of an earlier run.")],
    frames: Annotated[int, typer.Option(parser=integer, help=f"The number of frames to plan for, up to {MAX_FRAMES}.")],
    budget: Budget = None,
    tolerance: Tolerance = None,
    device: DeviceName = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the schedule to this JSON file.")] = None,
    as_json: AsJson = False,
    dtype: DType = "auto",
    memory: Memory = None,
) -> None:
    """The policy of every layer for a number of frames, from a profile."""
    speed_up, within = parse_budget(budget), parse_tolerance(tolerance)
    check_device(device)
    if not 1 <= frames <= MAX_FRAMES:
        raise AccelError(f"frames={frames} is not from 1 to {MAX_FRAMES}; give for example 200")
    from dataclasses import replace

    from accel.cost import Device
    from accel.memory import allowance
    from accel.profile import Profile
    from accel.run import Settings, choose_device, choose_dtype, make_schedule

    settings = Settings(budget=speed_up, tolerance=within, device=device, dtype=dtype, memory=parse_bytes(memory))
    target = choose_device(device)
    found = Profile.load(profile)
    machine = Device.measure(target, config=found.config, dtype=choose_dtype(dtype, target)[0])
    layout = replace(found.layout, frames=frames)
    limit, held, _ = allowance(settings.memory, found.config, layout, target)
    schedule = make_schedule(found, layout, settings, machine, limit, held)
    if out is not None:
        schedule.save(out)
    if as_json:
        typer.echo(schedule.to_json())
    else:
        Console().print(schedule.table())


@app.command()
@guarded
def validate(
    images: Annotated[list[Path], typer.Argument(help="Photographs of one place, or folders of them.")],
    schedule: Annotated[Path, typer.Option(help="schedule.json of an earlier run.")],
    weights: Weights = "testbed",
    device: DeviceName = "auto",
    as_json: AsJson = False,
    dtype: DType = "auto",
) -> None:
    """The error a schedule predicted beside the one it makes, layer by layer."""
    check_device(device)
    from accel.images import load_images
    from accel.models import load_model
    from accel.report import short
    from accel.run import Settings, choose_device, choose_dtype
    from accel.schedule import Schedule
    from accel.validate import validate as job

    target = choose_device(Settings(device=device, dtype=dtype).device)
    planned = Schedule.load(schedule)
    model = load_model(weights, target, choose_dtype(dtype, target)[0])
    model.frames_per_chunk = planned.frames_per_chunk
    loaded = load_images(images, model.config)
    data = job(model, loaded.tensor.to(target), planned)
    if as_json:
        print_json(data.to_dict())
        return
    print_table(
        ("layer", "policy", "predicted error", "measured error"),
        [
            (str(layer), short(policy.describe()), *(f"{float(data[name][layer]):.4f}" for name in ERRORS))
            for layer, policy in enumerate(planned.policies)
        ],
    )


ERRORS = ("predicted_error", "measured_error")


def _show(result: RunResult, as_json: bool) -> None:
    """The end of a run: JSON, or a table of the layers, the totals, and where the page is."""
    if as_json:
        print_json(result.results)
        return
    from accel.report import number, percent, short

    r = result.results
    time, difference = r["time"], r["output_difference"]
    print_table(
        ("layer", "policy", "error\npredicted", "\nmeasured", "effective rank\npredicted", "\nmeasured"),
        [
            (
                str(row["layer"]),
                short(row["description"]),
                *(percent(row[name]) for name in ERRORS),
                *(number(row[f"effective_rank_{name}"]) for name in ("predicted", "measured")),
            )
            for row in r["layers"]
        ],
    )
    lines = [("accelerated", f"{number(time['accelerated_s'])} s, planned {number(time['planned_s'])} s")]
    if difference is None:
        lines.append(("dense", f"not measured, planned {number(time['planned_dense_s'])} s"))
    else:
        lines.append(("dense", f"{number(time['dense_s'])} s, planned {number(time['planned_dense_s'])} s"))
        lines.append(("ratio", f"{number(time['ratio'])}, planned {number(time['planned_ratio'])}"))
        total = percent(difference["total"])
        lines.append(("output difference", f"{total}, predicted {percent(r['predicted_difference'])}"))
    for who, errors in (r["truth"] or {}).items():
        text = f"AUC@30 {number(errors['auc_30'])}, depth abs-rel {number(errors['depth_abs_rel'])}"
        lines.append((f"{who} against truth", text))
    lines += [("note", note) for note in r["notes"]]
    lines.append(("page", str(result.out / "report.html")))
    for name, text in lines:
        typer.echo(f"{name + ':':<27} {text}")


app.command("estimate")(guarded(estimate))
app.command("calibrate")(guarded(calibrate))
app.command("bench")(guarded(bench))


def main() -> None:
    """The console script: help without arguments, and one line for a usage error too."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="accel", standalone_mode=False)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "accel"
        code = refuse(f"{error.format_message().rstrip('.')}; see {command} --help").exit_code
    except typer.Abort:
        code = 130
    sys.exit(code or 0)
