"""What the cases of a call share: the machine's rates, the testbed's profile, models and images, made once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import accel
import meanfield
from accel.bench.cases import MODELS, Case
from accel.bench.machine import Machine
from accel.bench.reference import testbed_profile
from accel.cost import Device
from accel.errors import AccelError
from accel.images import load_images
from accel.layout import TokenLayout
from accel.models import TESTBED, VGGT, load_model, random_model
from accel.policies import Policy
from accel.profile import Profile

TRAINED = ("testbed",)
SETUP = {"rates": 5.0, "profile": 20.0, "vggt-1b": 40.0, "vggt-reduced": 1.0}
"""Seconds allowed for measuring rates, probing the testbed, and drawing the weights of a model on one CPU core."""
_DATA = ("*.json", "testbed.safetensors", "scene/**/*")
_PRESENTATION = ("cli.py", "command.py", "figures.py", "report.py", "tables.py", "results.py")


def code_version() -> str:
    """A hash of the sources that a number may depend on, and of the data: measured sparsity, weights, scene."""
    digest = hashlib.blake2b(digest_size=8)
    for package in (accel, meanfield):
        root = Path(package.__file__).parent
        paths = [path for path in root.rglob("*.py") if path.name not in _PRESENTATION]
        for pattern in _DATA:
            paths += [path for path in (root / "data").glob(pattern) if path.is_file()]
        for path in sorted(paths):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


class Workspace:
    """Cached parts in memory, the slow and small ones also in `out`/cache under the fingerprint of code and machine.

    options: what the profile is made for; None: all of `accel.bench.reference.candidates()`.
    """

    def __init__(self, out: Path, machine: Machine, *, options: Sequence[Policy] | None = None):
        self.machine, self.options = machine, options
        self.code = code_version()
        self.folder = out / "cache"
        self._speeds: dict[tuple[str, str], Device] = {}
        self._profile: Profile | None = None
        self._model: tuple[tuple[str, str], VGGT] | None = None
        self._scene: Tensor | None = None

    def fingerprint(self, *more: object) -> str:
        """A hash of code, machine, and what else a result depends on."""
        text = json.dumps([self.code, self.machine.identity(), *more], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def speeds(self, case: Case) -> Device:
        """Measured rates at the sizes of the case's model and dtype."""
        key = (case.model, case.dtype)
        if key not in self._speeds:
            path = self.folder / f"device-{self.fingerprint('device', *key)}.json"
            try:
                found = Device.from_dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError, AccelError):  # not there, or torn
                found = Device.measure(self.machine.device, config=case.config, dtype=getattr(torch, case.dtype))
                write(path, json.dumps(found.to_dict(), indent=1))
            self._speeds[key] = found
        return self._speeds[key]

    def setup_seconds(self, case: Case) -> float:
        """What is to be made before the case, roughly: rates, profile, weights; what exists already costs nothing."""
        seconds = 0.0 if (case.model, case.dtype) in self._speeds else SETUP["rates"]
        if case.suite in ("model", "memory"):
            seconds += 0.0 if self._profile is not None else SETUP["profile"]
            held = self._model is not None and self._model[0] == (case.model, case.dtype)
            seconds += 0.0 if held else SETUP.get(case.model, 0.0)
        return seconds

    def profile(self) -> Profile:
        """The testbed's profile on the bundled scene (`accel.bench.reference.testbed_profile`)."""
        if self._profile is None:
            path = self.folder / f"profile-{self.fingerprint('profile', str(self.options))}.nc"
            try:
                self._profile = Profile.load(path)
            except (OSError, ValueError, KeyError, AccelError):
                self._profile = testbed_profile(options=self.options)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._profile.save(path)
        return self._profile

    def model(self, case: Case) -> VGGT:
        """The case's model on the device; one is held at a time."""
        key = (case.model, case.dtype)
        if self._model is None or self._model[0] != key:
            self._model = None
            self.machine.empty()
            dtype = getattr(torch, case.dtype)
            if case.model in TRAINED:
                model = load_model(case.model, self.machine.device, dtype)
            else:
                model = random_model(MODELS[case.model], torch.Generator().manual_seed(0))
                model.aggregator.to(dtype)
                model.aggregator.set_normalisation()  # of float32 images
                model = model.to(self.machine.device)
            self._model = key, model
        return self._model[1]

    def release(self) -> None:
        """Let go of the model."""
        self._model = None
        self.machine.empty()

    def scene_frames(self) -> int:
        """Photographs in the bundled scene."""
        return self._bundled().shape[1]

    def _bundled(self) -> Tensor:
        if self._scene is None:
            folder = Path(str(resources.files("accel") / "data" / "scene"))
            self._scene = load_images([folder], TESTBED).tensor
        return self._scene

    def images(self, case: Case) -> Tensor:
        """(1, frames, 3, H, W) on the device: for a trained model the bundled scene, there and back where it is short;
        noise for random weights, whose times depend on no image."""
        size = [n * case.config.patch_size for n in case.grid]
        device = self.machine.device
        if case.model not in TRAINED:
            generator = torch.Generator(device).manual_seed(0)
            return torch.rand(1, case.frames, 3, *size, generator=generator, device=device)
        scene = self._bundled()
        there = list(range(scene.shape[1]))
        path = there + there[-2:0:-1]
        images = scene[0, [path[i % len(path)] for i in range(case.frames)]]
        if list(images.shape[-2:]) != size:
            images = interpolate(images, size=size, mode="area")
        return images[None].to(device)


def synthetic_layer(
    layout: TokenLayout, heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (1, H, N, D) of a made-up scene: smooth in row and column, slowly drifting with the frames, plus noise.

    Each head mixes the sines and cosines of place and frame by its own random matrix; specials have random phases. Rows
    of q and k are normalised to 1.2 and 1 times sqrt(D), as after QK norm. Attention is neither uniform nor sharp; it
    is that of no scene.
    """
    generator = torch.Generator(device).manual_seed(layout.tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    frame = torch.arange(layout.frames, device=device, dtype=torch.float32)
    rows = torch.linspace(0, 1, layout.grid_h, device=device).view(1, -1, 1) + 0.013 * frame.view(-1, 1, 1)
    columns = torch.linspace(0, 1, layout.grid_w, device=device).view(1, 1, -1) + 0.021 * frame.view(-1, 1, 1)
    shape = (layout.frames, layout.grid_h, layout.grid_w)
    places = torch.stack([rows.expand(shape), columns.expand(shape)], -1).flatten(1, 2)
    places = torch.cat([normal(layout.frames, layout.special, 2), places], 1).flatten(0, 1)
    phases = 6.2831853 * torch.cat([places, 2 * places], 1)
    waves = torch.cat([phases.sin(), phases.cos()], 1)
    tensors = []
    for length in (1.2, 1.0, None):
        x = torch.empty(1, heads, layout.tokens, dim, dtype=dtype, device=device)
        for head in range(heads):
            one = waves @ normal(waves.shape[1], dim) / waves.shape[1] ** 0.5 + 0.3 * normal(layout.tokens, dim)
            if length is not None:
                one *= length * dim**0.5 / one.norm(dim=-1, keepdim=True)
            x[0, head] = one
        tensors.append(x)
    return tuple(tensors)


def write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
