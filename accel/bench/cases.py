"""What is measured: profiles as lists of independent cases, each a line of the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models import TESTBED, VGGT_1B, VGGTConfig

SUITES = ("kernels", "model", "memory", "spectra")
REDUCED = replace(
    VGGT_1B,
    embed_dim=256,
    depth=8,
    num_heads=4,
    vit_depth=2,
    vit_heads=4,
    camera_depth=1,
    camera_heads=8,
    dpt_layers=(1, 3, 5, 7),
    dpt_features=32,
    dpt_channels=(32, 32, 32, 32),
    dpt_hidden=16,
)
"""VGGT-1B with a quarter of the channels and a third of the layers."""
MODELS: Mapping[str, VGGTConfig] = MappingProxyType({"testbed": TESTBED, "vggt-1b": VGGT_1B, "vggt-reduced": REDUCED})
"""The testbed is trained; the others have random weights."""

LAYER = ("frame", "subsample 4", "phased grid", "temporal stride 4", "merge .35", "merge", "query merge .35")
LAYER += ("block-sparse 1/8", "block-sparse", "avggt", "fastvggt", "faster-vggt", "spark3r", "regimevggt")
PLANS = {"planned": 0.03, "planned 10 %": 0.1, "planned 30 %": 0.3}
"""Names of plans and the predicted output difference that they may make."""
PLANNED, LOOSE, LOOSEST = PLANS
RULES = ("avggt", "fastvggt", "faster-vggt", "spark3r", "regimevggt")
FLOOR = "floor"


@dataclass(frozen=True)
class Case:
    """One measurement: `runs`, interleaved, on one layout; ratios are over the first of them.

    model names the sizes (heads and channels for kernels and spectra). once: the first run is too dear to repeat.
    part: tells cases of the same layout apart.
    """

    suite: str
    model: str
    frames: int
    grid: tuple[int, int]
    dtype: str
    runs: tuple[str, ...]
    rounds: int
    once: bool = False
    warm_up: bool = True
    part: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        object.__setattr__(self, "runs", tuple(self.runs))
        if self.suite not in SUITES:
            raise AccelError(f"suite {self.suite!r} is unknown; use one of {list(SUITES)}")
        if self.model not in MODELS:
            raise AccelError(f"model {self.model!r} is unknown; use one of {list(MODELS)}")

    @property
    def config(self) -> VGGTConfig:
        return MODELS[self.model]

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(self.frames, self.config.special_tokens, *self.grid)

    @property
    def name(self) -> str:
        part = f", {self.part}" if self.part else ""
        return f"{self.suite}: {self.model}, {self.frames} frames of {self.layout.tokens_per_frame} tokens{part}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        return cls(**{field.name: data[field.name] for field in fields(cls)})


def profile_cases(profile: str, scale: str = "full") -> tuple[Case, ...]:
    """The cases of a profile ("cpu", "gpu", "quick", "tiny"), cheap ones first in each suite.

    scale "small" has the cases of the GPU at sizes that a CPU runs in a minute: the same code on small numbers.
    """
    if profile not in PROFILES:
        raise AccelError(f"profile {profile!r} is unknown; use one of {list(PROFILES)}")
    if scale not in ("full", "small"):
        raise AccelError(f"scale {scale!r} is unknown; use full or small")
    if scale == "small" and profile != "gpu":
        raise AccelError(f"only the profile gpu has a small scale, not {profile!r}; leave out --scale, or try quick")
    return PROFILES[profile](scale)


def _gpu(scale: str) -> tuple[Case, ...]:
    """VGGT-1B in bfloat16 at its usual grid, or a reduced VGGT with few tokens."""
    small = scale == "small"
    model, grid = ("vggt-reduced", (4, 4)) if small else ("vggt-1b", (28, 37))
    shared = {"model": model, "grid": grid, "dtype": "bfloat16"}
    frames = (8, 12, 16, 24, 128) if small else (10, 29, 96, 288, 961)  # 1e4 to 1e6 tokens of 1,041
    found = [
        Case("kernels", frames=n, runs=("dense", "attend", "attend, masses", *LAYER), rounds=5, **shared)
        for n in frames
    ]
    small_frames, large_frames = ((4, 8, 12), (24, 104)) if small else ((100, 300, 500), (800, 1000))
    plans = tuple(PLANS)
    for n in small_frames:
        runs = ("dense", *plans, FLOOR, "merge", "block-sparse", *RULES)
        found.append(Case("model", frames=n, runs=runs, rounds=5, warm_up=n < small_frames[-1], **shared))
    for n in large_frames:
        once = {"frames": n, "rounds": 2, "warm_up": False} | shared
        found += [
            Case("model", runs=("dense", LOOSE, FLOOR), once=True, part="dense and planned", **once),
            Case("model", runs=(LOOSE, PLANNED, LOOSEST), part="plans", **once),
            Case("model", runs=(LOOSE, "avggt", "fastvggt", "spark3r"), part="rules, first part", **once),
            Case("model", runs=(LOOSE, "faster-vggt", "regimevggt"), part="rules, second part", **once),
            Case("model", runs=(LOOSE, "merge", "block-sparse"), part="measured sparsity", **once),
        ]
    memory = {"rounds": 1, "warm_up": False} | shared
    for n in (2, 6) if small else (8, 32, 200):
        found.append(Case("memory", frames=n, runs=("dense", PLANNED), **memory))
    for n in (32,) if small else (1500, 2000):
        found.append(Case("memory", frames=n, runs=(LOOSE,), **memory))
    shared["dtype"] = "float32"
    for n in (12, 24) if small else (96, 288, 961):
        found.append(Case("spectra", frames=n, runs=("forward", "spectrum"), rounds=1, warm_up=False, **shared))
    return tuple(found)


def _cpu(scale: str) -> tuple[Case, ...]:
    """One layer of 4 heads at 2,000 to 16,000 tokens, the testbed at 4 to 256 frames, a reduced VGGT: for 2 cores."""
    found = []
    for n, rounds in ((16, 5), (32, 5), (64, 3), (128, 3)):
        runs = ("dense", "attend", "attend, masses", *LAYER)
        found.append(Case("kernels", "vggt-reduced", n, (11, 11), "float32", runs, rounds))
    runs = ("dense", *PLANS, FLOOR, *RULES)
    for n, rounds in ((8, 5), (16, 5), (32, 3), (64, 3)):
        found.append(Case("model", "testbed", n, (8, 8), "float32", runs, rounds))
    for n, rounds in ((6, 3), (12, 2)):
        found.append(Case("model", "vggt-reduced", n, (14, 19), "float32", runs, rounds))
    for n, rounds in ((4, 5), (16, 3), (64, 2), (128, 1), (256, 1)):
        found.append(Case("memory", "testbed", n, (8, 8), "float32", ("dense", PLANNED), rounds, warm_up=n < 100))
    for n in (16, 78):
        found.append(Case("spectra", "vggt-reduced", n, (11, 11), "float32", ("forward", "spectrum"), 1))
    return tuple(found)


def _quick(scale: str) -> tuple[Case, ...]:
    """A minute on a CPU: every suite once."""
    few = ("dense", PLANNED, FLOOR, "avggt", "fastvggt")
    return (
        Case("kernels", "vggt-reduced", 16, (11, 11), "float32", ("dense", "attend", *LAYER), 3),
        Case("model", "testbed", 16, (8, 8), "float32", few, 3),
        Case("memory", "testbed", 32, (8, 8), "float32", ("dense", PLANNED), 1),
        Case("spectra", "vggt-reduced", 16, (11, 11), "float32", ("forward", "spectrum"), 1),
    )


def _tiny(scale: str) -> tuple[Case, ...]:
    """Some seconds: no number of it means anything, but every suite runs."""
    small = {"grid": (4, 4), "rounds": 2}
    return (
        Case("kernels", "testbed", 6, dtype="float32", runs=("dense", "attend, masses", "frame", "avggt"), **small),
        Case("model", "testbed", 4, dtype="float32", runs=("dense", PLANNED, FLOOR, "spark3r"), **small),
        Case("memory", "testbed", 4, dtype="float32", runs=("dense", FLOOR), **small),
        Case("spectra", "testbed", 4, dtype="float32", runs=("forward", "spectrum"), **small),
    )


PROFILES = MappingProxyType({"cpu": _cpu, "gpu": _gpu, "quick": _quick, "tiny": _tiny})
