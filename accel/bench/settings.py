"""What a benchmark puts in place of dense attention: our policies and the published rules, each with its basis.

Random weights have honest times and no honest sparsity: how many tokens or blocks a policy must keep comes from the
testbed (`experiments/measured_sparsity.py`, stored in accel/data/measured_sparsity.json), and the basis says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import (
    BlockSparse,
    Compose,
    Exact,
    Frame,
    Merge,
    PhasedGrid,
    Policy,
    QueryMerge,
    Subsample,
    TemporalStride,
)
from accel.presets import PUBLISHED, published_schedule

DENSE = "dense"
FIXED, RULE = "fixed setting", "published rule"
BLOCKS = (128, 64)


@dataclass(frozen=True)
class Setting:
    """A policy per layer (one, where the benchmark has one layer) and where its strength comes from; `reason` says why
    it is not run, empty where it is."""

    policies: tuple[Policy, ...]
    basis: str = FIXED
    reason: str = ""


def sparsity_file() -> Path:
    """Where the measured sparsity is stored."""
    return Path(str(resources.files("accel") / "data" / "measured_sparsity.json"))


@cache
def measured_sparsity() -> dict[str, Any]:
    """What the testbed needs to stay within an attention error, per layer; AccelError where the file is missing."""
    path = sparsity_file()
    if not path.is_file():
        raise AccelError(f"{path} is missing; install the package again, or run experiments.measured_sparsity")
    return json.loads(path.read_text(encoding="utf-8"))


def sparsity_basis(data: dict[str, Any]) -> str:
    """The `basis` of a setting whose strength was measured on the testbed."""
    return f"testbed at {data['frames']} frames: {data['tolerance']:.0%} attention error"


def block_density(kept: float, key_block: int) -> float:
    """`BlockSparse.density` that keeps this fraction of the blocks beside a stand-in for each other one."""
    return min(1.0, (kept * (key_block - 1) + 1) / key_block)


def by_depth(values: Sequence[Any], layers: int) -> list[Any]:
    """Values of the layers of one model at the same relative depth of another: layer l takes floor((l + 1/2) n / L)."""
    return [values[int((layer + 0.5) * len(values) / layers)] for layer in range(layers)]


def layer_settings(
    layout: TokenLayout, data: dict[str, Any] | None, *, blocks: tuple[int, int] = BLOCKS
) -> dict[str, Setting]:
    """What one layer is measured with, by name; `data` is `measured_sparsity()`, None leaves out what needs it."""
    query_block, key_block = blocks
    sizes = {"query_block": query_block, "key_block": key_block}
    found = {
        "frame": Setting((Frame(),)),
        "subsample 4": Setting((Subsample(stride=4, fill="mass"),)),
        "phased grid": Setting((PhasedGrid(),)),
        "temporal stride 4": Setting((TemporalStride(4),)),
        "merge .35": Setting((Merge(keep=0.35),)),
        "query merge .35": Setting((QueryMerge(keep=0.35),)),
        "block-sparse 1/8": Setting((BlockSparse(density=0.125, **sizes),)),
    }
    if data is not None:
        basis = sparsity_basis(data) + ", median layer"
        kept = block_density(median(data["block_sparse"]["kept"]), key_block)
        found["merge"] = Setting((Merge(keep=median(data["merge"]["keep"])),), basis)
        found["block-sparse"] = Setting((BlockSparse(density=kept, **sizes),), basis)
    published = {
        "avggt": Subsample.avggt(4),
        "fastvggt": Merge.fastvggt(),
        "faster-vggt": replace(BlockSparse.faster_vggt(0.75), **sizes),
        "spark3r": Compose.spark3r(layout.frames),
        "regimevggt": _first_band(layout),
    }
    found |= {name: Setting((policy,), RULE) for name, policy in published.items()}
    return {name: _checked(setting, layout) for name, setting in found.items()}


def _first_band(layout: TokenLayout) -> Policy:
    """RegimeVGGT's first layer: all sources merged, then a grid; it matches, for itself and its band."""
    merge, grid = PUBLISHED["regimevggt"](layout, 24)[0].policies
    return Compose((replace(merge, reuse=0), grid))


def model_settings(layout: TokenLayout, layers: int, data: dict[str, Any] | None) -> dict[str, Setting]:
    """What all global layers of a model are measured with, by name, but for the plans (`accel.bench.reference`)."""
    found = {"floor": Setting((Frame(),) * layers, "floor: every global layer as frame attention")}
    if data is not None:
        basis = sparsity_basis(data) + ", layers by relative depth"
        keeps, blocks = (by_depth(data[a][b], layers) for a, b in (("merge", "keep"), ("block_sparse", "kept")))
        found["merge"] = Setting(tuple(Merge(keep=keep) for keep in keeps), basis)
        found["block-sparse"] = Setting(
            tuple(BlockSparse(density=block_density(kept, BLOCKS[1])) for kept in blocks), basis
        )
    for name in PUBLISHED:
        schedule = published_schedule(name, layout, layers)
        refused = [why for why in schedule.reasons if why.startswith("exact: ")]
        reason = refused[0].removeprefix("exact: ") if refused else ""
        found[name] = Setting(schedule.policies, RULE, reason)
    return {name: _checked(setting, layout) for name, setting in found.items()}


def _checked(setting: Setting, layout: TokenLayout) -> Setting:
    """The setting with the reason why it has nothing to be measured here, if there is one."""
    if setting.reason:
        return setting
    kinds = set(setting.policies)
    try:
        for policy in kinds:
            policy.check(layout)
    except AccelError as error:
        return replace(setting, reason=str(error))
    exact = Exact().cost(layout, 1, 1).flops
    if all(_is_exact(policy, layout, exact) for policy in kinds):
        return replace(setting, reason="this setting is exact attention at so few frames")
    return setting


def _is_exact(policy: Policy, layout: TokenLayout, exact: float) -> bool:
    return policy.name == "exact" or policy.cost(layout, 1, 1).flops == exact
