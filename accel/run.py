"""The main job: photographs -> probe -> prediction -> plan -> dense and accelerated forward -> spectra -> files."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from torch import Tensor, nn

from accel import report
from accel.cost import Device
from accel.errors import AccelError
from accel.images import Images, load_images, load_truth
from accel.layout import TokenLayout
from accel.memory import allowance, fits, peak_memory, too_many
from accel.models import VGGT, VGGTConfig, load_model
from accel.models.pose import decode_pose
from accel.outputs import output_difference
from accel.patch import patch
from accel.predictors import TheoryPredictor
from accel.profile import Profile, probe
from accel.provenance import provenance
from accel.recover import OutOfMemory, Recovery
from accel.schedule import Schedule, plan
from accel.spectra import measure_spectra
from accel.store import Stages, Store, check_folder, fingerprint
from accel.validate import on_cpu, validate
from meanfield import predict_rank, predict_spectrum

DEFAULT_TOLERANCE = 0.02
SHORT = 5.0
"""Seconds of dense plus accelerated forward below which both are repeated, in turn, and medians reported."""
REPEATS = 5
SINGULAR_VALUES = 32
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What was asked for; one of `budget` (speed-up of the whole step) and `tolerance` (output error) is set.

    memory: bytes that may be used at the peak, weights and kept predictions included (None: `accel.memory.allowance`).
    """

    weights: str = "testbed"
    budget: float | None = None
    tolerance: float | None = None
    device: str = "auto"
    probe_frames: int = 4
    frames: int | None = None
    dense: bool = True
    spectra: bool = True
    seed: int = 0
    dtype: str = "auto"
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.tolerance is not None:
            raise AccelError(f"give one of budget={self.budget:g} and tolerance={self.tolerance:g}, not both")
        if self.budget is None and self.tolerance is None:
            object.__setattr__(self, "tolerance", DEFAULT_TOLERANCE)
        if self.budget is not None and not 1 <= self.budget < float("inf"):
            raise AccelError(f"budget={self.budget:g} is not a speed-up; give a factor of at least 1, such as 2x")
        if self.tolerance is not None and not 0 <= self.tolerance <= 1:
            raise AccelError(f"tolerance={self.tolerance:g} is not within 0 .. 1; give a relative error such as 0.02")
        if self.probe_frames < 3:
            raise AccelError(f"probe_frames={self.probe_frames} is too few for the statistics; give at least 3")
        if not 0 <= self.seed < 2**63:
            raise AccelError(f"seed={self.seed} is not within 0 .. 2^63; give a non-negative integer")
        if self.dtype not in DTYPES:
            raise AccelError(f'dtype "{self.dtype}" is not supported; give one of {", ".join(DTYPES)}')
        if self.memory is not None and not 0 < self.memory < float("inf"):
            raise AccelError(f"memory={self.memory:g} is not a number of bytes; give a positive one, such as 12GB")


@dataclass(frozen=True, eq=False)
class RunResult:
    """Everything a run found; `results` are the numbers of the page, as JSON values. Absent parts are None."""

    settings: Settings
    config: VGGTConfig
    parameters: int
    device: str
    images: Images
    layout: TokenLayout
    profile: Profile
    schedule: Schedule
    ranks: xr.Dataset | None
    predicted: xr.Dataset | None
    measured: xr.Dataset | None
    validation: xr.Dataset | None
    accelerated: dict[str, np.ndarray]
    dense: dict[str, np.ndarray] | None
    truth: dict[str, np.ndarray] | None
    difference: dict[str, float] | None
    times: dict[str, Any]
    stages: dict[str, float]
    reused: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    out: Path
    results: dict[str, Any] = field(default_factory=dict)


def run(images: Iterable[str | Path], out: str | Path, *, console: Console | None = None, **asked: Any) -> RunResult:
    """Cameras, depth and points of the photographs by a planned schedule, beside the dense result, in the folder `out`.

    Keywords are the fields of `Settings`; progress goes to `console` (None: silent). Files: predictions.npz,
    schedule.json, profile.nc, ranks.nc, spectra_predicted.nc, spectra_measured.nc, validation.nc, results.json,
    report.html; earlier ones are replaced when all new ones are complete. Probe, speeds, validation and spectra are
    kept in out/.cache under a hash of weights, images, settings and code, so that an interrupted run resumes.
    Without `dense` nothing is compared, and the spectra are those of the accelerated model.

    Frames at once and policies are chosen within the memory there is; where it ends in the middle all the same, with
    less of both (`accel.recover`).

    AccelError before anything is written for bad images, weights, settings, folders and too little memory; for a budget
    or tolerance out of reach after the probe.
    """
    settings, out = Settings(**asked), Path(out)
    seed, dense = settings.seed, settings.dense
    check_folder(out)
    stages = Stages(console)
    target = choose_device(settings.device)
    dtype, said = choose_dtype(settings.dtype, target)
    with stages("load"):
        model = load_model(settings.weights, target, dtype)
        loaded = load_images(images, model.config, frames=settings.frames)
        truth = load_truth(loaded)
        parameters = sum(p.numel() for p in model.parameters())
        layout = model.layout(loaded.tensor)
        memory, held = _memory(model, layout, settings, target)
        x = loaded.tensor.to(target)
        store = Store(out, fingerprint(model, x))

        here = (platform.node(), *report.machine(str(target)).values())
    within = Recovery(model, layout, say=stages.console.print)
    key = (min(settings.probe_frames, len(loaded)), seed)
    data = within(lambda: store.cached(stages, "probe", key, lambda: _probe(model, x, settings, stages.bars)))
    profile = Profile(data)
    with stages("predict"):
        ranks, predicted, notes = _predict(profile, layout)
    speeds = store.cached(stages, "speeds", here, lambda: _speeds(model, target, dtype), False)
    machine = Device.from_dict(json.loads(speeds.attrs["device"]))
    within.replan = lambda less: make_schedule(profile, layout, settings, machine, less)
    with stages("plan"):
        within.adopt(make_schedule(profile, layout, settings, machine, memory, held))
    with stages("forward"):
        exact, dense_seconds, _ = within(lambda: forward(model, x), planned=False) if dense else (None, 0.0, ())
        fast, fast_seconds, failed = within(lambda: forward(model, x, within.schedule))
    repeats = REPEATS if dense_seconds + fast_seconds < SHORT else 1
    validation = measured = difference = None
    if exact is not None:
        made, options = within.schedule, {"repeats": repeats, "progress": stages.bars}

        def validated() -> xr.Dataset:
            plan = within.schedule
            key = (_key(plan), repeats, here)
            return store.cached(stages, "validate", key, lambda: validate(model, x, plan, **options))

        validation = within(validated)
        if within.schedule.policies != made.policies:
            fast, fast_seconds, failed = within(lambda: forward(model, x, within.schedule))
        difference = output_difference(exact, fast)
        times = {name: float(validation[f"measured_seconds_{name}"]) for name in ("dense", "planned")}
    else:
        runs = (within(lambda: forward(model, x, within.schedule))[1] for _ in range(repeats))
        times = {"planned": statistics.median(runs)}
    schedule = within.schedule
    if settings.spectra:
        count = predicted.sizes["k"] if predicted is not None else min(SINGULAR_VALUES, layout.tokens // 2)
        key = (count, seed, None if dense else _key(schedule))

        def spectra() -> xr.Dataset:
            with nullcontext() if dense else patch(model, schedule):
                return store.cached(stages, "spectra", key, lambda: _spectra(model, x, count, seed, stages.bars))

        try:
            measured = within(spectra, planned=False)
        except OutOfMemory as error:
            notes += (f"Spectra were not measured: {error}.",)
    result = RunResult(
        settings=settings,
        config=model.config,
        parameters=parameters,
        device=str(target),
        images=loaded,
        layout=layout,
        profile=profile,
        schedule=schedule,
        ranks=ranks,
        predicted=predicted,
        measured=measured,
        validation=validation,
        accelerated=prediction_arrays(fast),
        dense=None if exact is None else prediction_arrays(exact),
        truth=truth,
        difference=difference,
        times=times | {"repeats": repeats},
        stages=stages.seconds,
        reused=tuple(stages.reused),
        notes=(*notes, *said, *within.notes, *failed),
        provenance=provenance(device=target, dtype=dtype, seed=seed),
        out=out,
    )
    with stages("write"):
        result.results.update(report.summarise(result))
        store.publish(report.writers(result))
    return result


def _probe(model: nn.Module, x: Tensor, settings: Settings, bars: bool) -> xr.Dataset:
    generator = torch.Generator().manual_seed(settings.seed)
    return probe(model, x, frames=settings.probe_frames, generator=generator, progress=bars).data


def _speeds(model: nn.Module, device: torch.device, dtype: torch.dtype) -> xr.Dataset:
    measured = Device.measure(device, config=model.config, dtype=dtype)
    return xr.Dataset(attrs={"device": json.dumps(measured.to_dict())})


def _spectra(model: nn.Module, x: Tensor, count: int, seed: int, bars: bool) -> xr.Dataset:
    generator = torch.Generator().manual_seed(seed)
    return measure_spectra(model, x, k=count, generator=generator, method="auto", progress=bars)


def _predict(profile: Profile, layout: TokenLayout) -> tuple[xr.Dataset | None, xr.Dataset | None, tuple[str, ...]]:
    """Ranks and spectra at the layout's number of tokens; None and a note where the probe does not carry them."""
    try:
        params = profile.rank_params()
        count = min(SINGULAR_VALUES, layout.tokens // 2, profile.layout.tokens // 2)
        ranks = predict_rank(profile.layers, layout.tokens, params=params)
        return ranks, predict_spectrum(params, layout.tokens, k=count), ()
    except (AccelError, ValueError) as error:
        return None, None, (f"Ranks and spectra were not predicted: {error}.",)


def make_schedule(
    profile: Profile,
    layout: TokenLayout,
    settings: Settings,
    machine: Device,
    memory: float | None = None,
    held: float = 0.0,
) -> Schedule:
    """The theory's schedule for this layout, within the budget or the tolerance asked for and within `memory` bytes, of
    which `held` per frame stay beside the forward, at the machine's speeds."""
    goal = {"tolerance": settings.tolerance} if settings.budget is None else {"budget": settings.budget}
    return plan(profile, layout, predictor=TheoryPredictor(), device=machine, memory=memory, held=held, **goal)


def _key(schedule: Schedule) -> str:
    """What a measurement of a schedule depends on; memory_reason is not of it, since free memory is never the same."""
    names = ("layout", "policies", "predicted_error", "sensitivity", "seconds_saved", "predicted_seconds")
    data = json.loads(schedule.to_json())
    return json.dumps({name: data[name] for name in (*names, "predictor", "frames_per_chunk")})


def _memory(model: VGGT, layout: TokenLayout, settings: Settings, device: torch.device) -> tuple[float, float]:
    """Bytes that may be used at the peak, and bytes per frame held beside a forward, by `allowance`.

    AccelError where the scene does not fit one frame at a time.
    """
    config, dense = model.config, settings.dense
    sizes = {"itemsize": next(model.aggregator.parameters()).element_size()}
    weights = peak_memory(config, layout, **sizes).weights
    memory, held, spared = allowance(settings.memory, config, layout, device, dense=dense, loaded=weights)
    if not fits(config, layout, memory, frames_per_chunk=1, held=held, **sizes):
        raise AccelError(f"on {device} {too_many(config, layout, memory, held=held, spared=spared, **sizes)}")
    return memory, held


def forward(model: nn.Module, x: Tensor, schedule: Schedule | None = None) -> tuple[dict[str, Tensor], float, tuple]:
    """A prediction (moved to the CPU), exact or by a schedule, its seconds, and a note on each layer out of memory."""
    _wait(x)
    start = time.perf_counter()
    with torch.no_grad(), nullcontext() if schedule is None else patch(model, schedule) as applied:
        found = model(x)
    _wait(x)
    seconds = time.perf_counter() - start
    failed = {} if applied is None else applied.fallbacks
    notes = tuple(f"Layer {i}: exact, the policy ran out of memory ({why[-1]})." for i, why in failed.items())
    return on_cpu(found), seconds, notes


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def prediction_arrays(prediction: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """A prediction without its batch dimension, with extrinsics and intrinsics, in float32."""
    found = {name: value[0].float().cpu() for name, value in prediction.items()}
    found["depth"] = found["depth"][..., 0]
    height, width = found["depth"].shape[-2:]
    found["extrinsics"], found["intrinsics"] = decode_pose(found["pose_enc"], height, width)
    return {name: value.numpy() for name, value in found.items()}


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of the trunk of a name, and what to say of it; "auto" is bfloat16 on a GPU that computes in it."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto" and able:
        return torch.bfloat16, ("The trunk ran in bfloat16; --dtype float32 takes twice the memory.",)
    if name == "bfloat16" and device.type == "cuda" and not able:
        raise AccelError(f"{torch.cuda.get_device_name(device)} has no bfloat16; give --dtype float32")
    if name == "bfloat16" and not able:
        return torch.bfloat16, ("The trunk ran in bfloat16, which on a CPU saves memory and no time.",)
    return torch.bfloat16 if name == "bfloat16" else torch.float32, ()


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise AccelError(f'device "{name}" is not supported; give cpu, cuda, cuda:0 (or another index) or auto')
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AccelError(f'device "{name}" cannot be used ({reason}); give cpu, cuda or auto') from error
    return device
