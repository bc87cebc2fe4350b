"""The main job: photographs -> probe -> prediction -> plan -> dense and accelerated forward -> spectra -> files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from torch import Tensor, nn

import meanfield
from accel import report
from accel.cost import Device
from accel.errors import AccelError
from accel.images import Images, load_images, load_truth
from accel.layout import TokenLayout
from accel.models import VGGTConfig, load_model
from accel.models.pose import decode_pose
from accel.outputs import output_difference
from accel.patch import patch
from accel.predictors import TheoryPredictor
from accel.profile import Profile, probe
from accel.provenance import provenance
from accel.schedule import Schedule, plan
from accel.spectra import measure_spectra
from accel.validate import validate
from meanfield import predict_rank, predict_spectrum

DEFAULT_TOLERANCE = 0.02
SHORT = 5.0
"""Seconds of dense plus accelerated forward below which both are repeated, in turn, and medians reported."""
REPEATS = 5
OUTPUTS = ("predictions.npz", "schedule.json", "results.json", "report.html", "profile.nc", "ranks.nc")
OUTPUTS += ("spectra_predicted.nc", "spectra_measured.nc", "validation.nc")
SINGULAR_VALUES = 32
MEMORY_MARGIN = 0.9


@dataclass(frozen=True)
class Settings:
    """What was asked for; one of `budget` (speed-up of the whole step) and `tolerance` (output error) is set."""

    weights: str = "testbed"
    budget: float | None = None
    tolerance: float | None = None
    device: str = "auto"
    probe_frames: int = 4
    frames: int | None = None
    dense: bool = True
    spectra: bool = True
    seed: int = 0

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

    AccelError before anything is written for bad images, weights, settings, folders and too little memory; for a budget
    or tolerance out of reach after the probe.
    """
    settings, out = Settings(**asked), Path(out)
    seed, dense = settings.seed, settings.dense
    check_folder(out)
    stages = _Stages(console)
    target = choose_device(settings.device)
    with stages("load"):
        model = load_model(settings.weights, target)
        loaded = load_images(images, model.config, frames=settings.frames)
        truth = load_truth(loaded)
        parameters = sum(p.numel() for p in model.parameters())
        check_memory(model.config, loaded.tensor.shape, target)
        x = loaded.tensor.to(target)
        layout = model.layout(x)
        store = _Store(out, _fingerprint(model, x))

        here = (platform.node(), *report.machine(str(target)).values())
    key = (min(settings.probe_frames, len(loaded)), seed)
    profile = Profile(store.cached(stages, "probe", key, lambda: _probe(model, x, settings, stages.bars)))
    with stages("predict"):
        ranks, predicted, notes = _predict(profile, layout)
    speeds = store.cached(stages, "speeds", here, lambda: _speeds(model, target), False)
    with stages("plan"):
        schedule = make_schedule(profile, layout, settings, Device.from_dict(json.loads(speeds.attrs["device"])))
    with stages("forward"):
        exact, dense_seconds, _ = forward(model, x) if dense else (None, 0.0, ())
        fast, fast_seconds, failed = forward(model, x, schedule)
    repeats = REPEATS if dense_seconds + fast_seconds < SHORT else 1
    validation = measured = difference = None
    if exact is not None:
        key = (schedule.to_json(), repeats, here)
        difference = output_difference(exact, fast)
        options = {"repeats": repeats, "progress": stages.bars}
        validation = store.cached(stages, "validate", key, lambda: validate(model, x, schedule, **options))
        times = {name: float(validation[f"measured_seconds_{name}"]) for name in ("dense", "planned")}
    else:
        times = {"planned": statistics.median(forward(model, x, schedule)[1] for _ in range(repeats))}
    if settings.spectra:
        count = predicted.sizes["k"] if predicted is not None else min(SINGULAR_VALUES, layout.tokens // 2)
        context = nullcontext() if dense else patch(model, schedule)
        key = (count, seed, None if dense else schedule.to_json())
        with context:
            measured = store.cached(stages, "spectra", key, lambda: _spectra(model, x, count, seed, stages.bars))
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
        accelerated=_arrays(fast),
        dense=None if exact is None else _arrays(exact),
        truth=truth,
        difference=difference,
        times=times | {"repeats": repeats},
        stages=stages.seconds,
        reused=tuple(stages.reused),
        notes=notes + failed,
        provenance=provenance(device=target, dtype=x.dtype, seed=seed),
        out=out,
    )
    with stages("write"):
        result.results.update(report.summarise(result))
        store.publish(report.writers(result))
    return result


def _probe(model: nn.Module, x: Tensor, settings: Settings, bars: bool) -> xr.Dataset:
    generator = torch.Generator().manual_seed(settings.seed)
    return probe(model, x, frames=settings.probe_frames, generator=generator, progress=bars).data


def _speeds(model: nn.Module, device: torch.device) -> xr.Dataset:
    return xr.Dataset(attrs={"device": json.dumps(Device.measure(device, config=model.config).to_dict())})


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


def make_schedule(profile: Profile, layout: TokenLayout, settings: Settings, machine: Device) -> Schedule:
    """The theory's schedule for this layout, within the budget or the tolerance asked for, at the machine's speeds."""
    goal = {"tolerance": settings.tolerance} if settings.budget is None else {"budget": settings.budget}
    return plan(profile, layout, predictor=TheoryPredictor(), device=machine, **goal)


def forward(model: nn.Module, x: Tensor, schedule: Schedule | None = None) -> tuple[dict[str, Tensor], float, tuple]:
    """A prediction, by exact attention or by a schedule, its seconds, and a note on each layer out of memory."""
    _wait(x)
    start = time.perf_counter()
    with torch.no_grad(), nullcontext() if schedule is None else patch(model, schedule) as applied:
        found = model(x)
    _wait(x)
    failed = {} if applied is None else applied.fallbacks
    notes = tuple(f"Layer {i}: exact, the policy ran out of memory ({why[-1]})." for i, why in failed.items())
    return found, time.perf_counter() - start, notes


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _arrays(prediction: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """A prediction without its batch dimension, with extrinsics and intrinsics, in float32."""
    found = {name: value[0].float().cpu() for name, value in prediction.items()}
    found["depth"] = found["depth"][..., 0]
    height, width = found["depth"].shape[-2:]
    found["extrinsics"], found["intrinsics"] = decode_pose(found["pose_enc"], height, width)
    return {name: value.numpy() for name, value in found.items()}


class _Stages:
    """Names, seconds and reuse of the steps of a run, said on a console as they go."""

    def __init__(self, console: Console | None):
        self.bars, self.console = console is not None, console or Console(quiet=True)
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []

    @contextmanager
    def __call__(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        start = time.perf_counter()
        with self.console.status(f"{name} ...") if spinner else nullcontext():
            yield
        self.seconds[name] = time.perf_counter() - start
        self.console.print(f"[green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]", highlight=False)


class _Store:
    """The output folder: finished stages in .cache, and outputs that appear complete or not at all."""

    def __init__(self, out: Path, fingerprint: str):
        self.out, self.fingerprint = out, fingerprint

    def cached(
        self, stages: _Stages, stage: str, key: tuple, compute: Callable[[], xr.Dataset], bars: bool = True
    ) -> xr.Dataset:
        """The dataset of a stage, from an earlier run with the same key or from `compute`."""
        digest = hashlib.blake2b(repr((self.fingerprint, stage, key)).encode(), digest_size=10).hexdigest()
        path = self.out / ".cache" / f"{stage}-{digest}.nc"
        if path.is_file():
            try:
                with xr.open_dataset(path, engine="h5netcdf") as data:
                    found = data.load()
                stages.reused.append(stage)
                stages.console.print(f"[green]✓[/] {stage} [dim]reused from an earlier run[/]", highlight=False)
                return found
            except (OSError, ValueError, KeyError):
                pass  # a damaged file is measured anew
        with stages(stage, spinner=not bars):
            found = compute()
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            report.write_netcdf(found, part)
            part.replace(path)
        return found

    def publish(self, writers: dict[str, Callable[[Path], None]]) -> None:
        """Write every file beside the outputs, then move all of them into place; outputs of earlier runs go."""
        self.out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.out))
        try:
            for name, write in writers.items():
                write(folder / name)
            check_folder(self.out)
            for name in writers:
                os.replace(folder / name, self.out / name)
            for name in set(OUTPUTS) - set(writers):
                (self.out / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_folder(out: Path) -> None:
    """AccelError unless `out` is a folder that can be written, or can be made, with no folder in an output's place."""
    for name in OUTPUTS:
        if (out / name).is_dir():
            raise AccelError(f"{out / name} is a folder where a file is to be written; move it, or give another --out")
    for place in (out, *out.absolute().parents):
        if place.is_dir():
            if not os.access(place, os.W_OK):
                raise AccelError(f"{place} cannot be written; give another --out folder")
            return
        if place.exists():
            raise AccelError(f"{place} is a file, not a folder; give another --out folder, or move the file away")


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


def peak_bytes(config: VGGTConfig, shape: tuple[int, ...], parameters: int) -> float:
    """Estimated peak memory of a run on images of this shape (1, S, 3, H, W); float32.

    Weights; the kept layers of the trunk; a block's work arrays, about 14 per token and channel; the DPT head of four
    frames; three predictions held at once; the work arrays of the spectra of one head.
    """
    _, frames, _, height, width = shape
    per_frame = config.special_tokens + (height // config.patch_size) * (width // config.patch_size)
    tokens, C = frames * per_frame, config.embed_dim
    kept = 2 * tokens * C * len(config.kept_layers)
    block = 14 * tokens * C
    head = 4 * min(frames, 4) * height * width * max(config.dpt_features // 2, config.dpt_hidden)
    outputs = 3 * frames * height * width * 6 + 2 * frames * 3 * height * width
    spectra = tokens * (9 * max(64, config.head_dim) + 4 * 32 * 32) + 2 * min(tokens, 1200) ** 2 * config.num_heads
    return 4.0 * (parameters + kept + max(block, head, spectra) + outputs)


def available_bytes(device: torch.device) -> float:
    """Memory that can still be taken on the device, within the limits of a container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = max(free, *(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return float(free)


def check_memory(config: VGGTConfig, shape: tuple[int, ...], device: torch.device) -> None:
    """AccelError when a run would not fit, naming the number of frames that would."""
    free = MEMORY_MARGIN * available_bytes(device)

    def need(frames: int) -> float:
        return peak_bytes(config, (1, frames, *shape[2:]), 0)  # the weights are loaded already

    if need(shape[1]) <= free:
        return
    fit = next((frames for frames in range(shape[1] - 1, 2, -1) if need(frames) <= free), 0)
    needed, have = (f"{x / 2**30:.1f} GiB" for x in (need(shape[1]), free))
    remedy = f"give --frames {fit}, so many would fit" if fit else "not even 3 would fit: use another machine"
    raise AccelError(f"{shape[1]} frames need about {needed} and {have} are free on {device}; {remedy}")


def _fingerprint(model: nn.Module, x: Tensor) -> str:
    """A hash of what every stage depends on: weights, images, device, and this code."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((model.config.to_json(), str(x.device), torch.__version__, tuple(x.shape))).encode())
    for source in sorted(p for package in (report, meanfield) for p in Path(package.__file__).parent.rglob("*.py")):
        if source.name not in ("cli.py", "figures.py", "report.py"):
            digest.update(source.read_bytes())
    for name, tensor in [*model.state_dict().items(), ("images", x)]:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
