"""The folder of a run: stages that are kept as they finish, and outputs that appear complete or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import xarray as xr
from rich.console import Console
from torch import Tensor, nn

import meanfield
from accel import report
from accel.errors import AccelError

OUTPUTS = ("predictions.npz", "schedule.json", "results.json", "report.html", "profile.nc", "ranks.nc")
OUTPUTS += ("spectra_predicted.nc", "spectra_measured.nc", "validation.nc")


class Stages:
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


class Store:
    """The output folder: finished stages in .cache, and outputs that appear complete or not at all."""

    def __init__(self, out: Path, fingerprint: str):
        self.out, self.fingerprint = out, fingerprint

    def cached(
        self, stages: Stages, stage: str, key: tuple, compute: Callable[[], xr.Dataset], bars: bool = True
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


def fingerprint(model: nn.Module, x: Tensor) -> str:
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
