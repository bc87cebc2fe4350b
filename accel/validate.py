"""Predicted against measured: what a schedule promised, layer by layer and end to end."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from accel.errors import AccelError
from accel.outputs import output_difference
from accel.patch import patch, record
from accel.policies import Context
from accel.provenance import provenance
from accel.schedule import Schedule
from accel.sites import sites
from accel.statistics import option_errors


def validate(
    model: nn.Module,
    images: Tensor,
    schedule: Schedule,
    *,
    repeats: int = 3,
    progress: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> xr.Dataset:
    """Predicted and measured attention errors, output differences and times of a schedule on one scene.

    images (1, S, 3, H, W) of the schedule's layout. 3 + 2 repeats forwards: one that measures, one of each kind to warm
    up, then dense and planned in turns. Over (layer): policy, predicted_error and measured_error (relative rms, on
    the exact model's q, k, v), sensitivity, predicted_output_error, fallbacks (planned forwards in which the policy ran
    out of memory and the model's own attention answered; outputs and times are then of that). Scalars: predicted_total;
    measured_depth, _points, _rotation, _translation and _total (`output_difference`); predicted and measured
    seconds_dense, seconds_planned (medians) and speedup. Over (repeat): run_seconds_dense, run_seconds_planned.
    """
    if images.ndim != 5 or images.shape[0] != 1:
        raise AccelError(f"images have shape {tuple(images.shape)}; give one scene, (1, frames, 3, height, width)")
    if model.layout(images) != schedule.layout:
        raise AccelError(
            f"the schedule is for {schedule.layout}, the images have {model.layout(images)}; plan for these"
        )
    if repeats < 1:
        raise AccelError(f"repeats={repeats} must be at least 1")
    if len(sites(model)) != schedule.layers:
        raise AccelError(f"the schedule has {schedule.layers} layers and the model {len(sites(model))}; plan for it")
    errors, fallbacks = np.zeros(schedule.layers), np.zeros(schedule.layers)

    def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
        policy = schedule.policies[context.layer]
        errors[context.layer] = option_errors(q, k, v, schedule.layout, [policy], context=context)[0]

    def dense() -> dict[str, Tensor]:
        return model(images)

    def planned() -> dict[str, Tensor]:
        with patch(model, schedule) as applied:
            found = model(images)
        for layer, reasons in applied.fallbacks.items():
            fallbacks[layer] += len(reasons)
        return found

    def timed(forward: Callable[[], dict[str, Tensor]]) -> float:
        _wait(images.device)
        start = clock()
        forward()
        _wait(images.device)
        bar.advance(task)
        return clock() - start

    columns = (TextColumn("validate"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with torch.no_grad(), Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("validate", total=3 + 2 * repeats)
        with record(model, measure):
            model(images)
        bar.advance(task)
        reference = on_cpu(dense())
        bar.advance(task)
        difference = output_difference(reference, on_cpu(planned()))
        bar.advance(task)
        del reference
        runs = np.array([(timed(dense), timed(planned)) for _ in range(repeats)])
    return _dataset(schedule, errors, fallbacks, difference, runs, model)


def on_cpu(prediction: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prediction in the memory of the host, so that none stays on a GPU while the next forward runs there."""
    return {name: value.cpu() for name, value in prediction.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dataset(
    schedule: Schedule,
    errors: np.ndarray,
    fallbacks: np.ndarray,
    difference: dict[str, float],
    runs: np.ndarray,
    model: nn.Module,
) -> xr.Dataset:
    predicted = schedule.predicted_seconds or (np.nan, np.nan)
    seconds = np.median(runs, axis=0)
    layers = {
        "policy": ([p.describe() for p in schedule.policies], "policy"),
        "predicted_error": (schedule.predicted_error, "predicted relative rms error of the attention output"),
        "measured_error": (errors, "measured relative rms error of the attention output"),
        "sensitivity": (schedule.sensitivity, "output difference per relative attention error, from the probe"),
        "predicted_output_error": (schedule.predicted_output_error, "predicted output difference from this layer"),
        "fallbacks": (fallbacks, f"of {1 + len(runs)} planned forwards, those out of memory, hence exact"),
    }
    scalars = {"predicted_total": (schedule.predicted_total, "predicted output difference", "1")}
    for name, value in difference.items():
        units = "rad" if name == "rotation" else "1"
        scalars[f"measured_{name}"] = (value, f"measured output difference, {name}", units)
    for i, kind in enumerate(("dense", "planned")):
        scalars[f"predicted_seconds_{kind}"] = (predicted[i], f"predicted time of a {kind} forward", "s")
        scalars[f"measured_seconds_{kind}"] = (seconds[i], f"measured time of a {kind} forward, median", "s")
    scalars["predicted_speedup"] = (predicted[0] / predicted[1], "predicted speed-up of the forward", "1")
    scalars["measured_speedup"] = (seconds[0] / seconds[1], "measured speed-up of the forward", "1")
    data = xr.Dataset(coords={"layer": np.arange(schedule.layers), "repeat": np.arange(len(runs))})
    for name, (value, long_name) in layers.items():
        data[name] = (("layer",), np.asarray(value), {"long_name": long_name, "units": "1"})
    for name, (value, long_name, units) in scalars.items():
        data[name] = ((), float(value), {"long_name": long_name, "units": units})
    for i, kind in enumerate(("dense", "planned")):
        text = f"measured times of {kind} forwards, taken in turns"
        data[f"run_seconds_{kind}"] = (("repeat",), runs[:, i], {"long_name": text, "units": "s"})
    parameter = next(model.parameters())
    return data.assign_attrs(
        provenance(device=parameter.device, dtype=parameter.dtype)
        | {"tokens": schedule.layout.tokens, "frames": schedule.layout.frames, "predictor": schedule.predictor}
    )
