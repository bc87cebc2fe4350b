"""The planned schedule of a benchmark: what the testbed's probe says of its layers, carried to any VGGT by depth.

Random weights say nothing about accuracy, so the plan rests on a trained model: layer l of L takes what was measured in
the testbed's layer floor((l + 1/2) 6 / L), its errors and the share 6 / L of its sensitivity, and `accel.plan` weighs
them against the times of this model's layers on this device. Errors are the testbed's on its bundled scene, not those
of the model timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from accel.bench.settings import BLOCKS, block_density, by_depth
from accel.cost import Device
from accel.errors import AccelError
from accel.images import load_images
from accel.layout import TokenLayout
from accel.models import TESTBED, VGGTConfig, load_model
from accel.options import allows, default_options, strided
from accel.policies import BlockSparse, Compose, Merge, Policy, QueryMerge, Subsample
from accel.predictors import TheoryPredictor
from accel.profile import Profile, probe
from accel.schedule import Schedule, plan

BASIS = "plan: errors of the testbed, depth-mapped"
PROBE_FRAMES = 4
_SMALL = {"query_block": 8, "key_block": 4}
"""Blocks of the testbed's 64 patches per frame that stand for 128 x 64 of 1,036: the same share of a frame."""


def candidates() -> dict[Policy, Policy]:
    """What a plan chooses from: the policy that the testbed is probed with -> the one that a schedule has.

    Those of `accel.options`, the strongest grid, and two composed ones; they differ in the sizes of blocks alone.
    """
    usual = (p for p in default_options(TokenLayout(100, 5, 28, 37)) if not isinstance(p, BlockSparse))
    same: tuple[Policy, ...] = (
        *usual,
        Subsample(window=(8, 8), fill="shrink"),
        *(Compose((Merge(keep=x), Subsample(stride=4, fill="mass"))) for x in (0.5, 0.25)),
        *(Compose((QueryMerge(keep=x), Subsample(stride=16, fill="published"))) for x in (0.5, 0.25)),
    )
    blocks = {
        BlockSparse(block_density(kept, 4), **_SMALL): BlockSparse(block_density(kept, BLOCKS[1]))
        for kept in (0.25, 0.125)
    }
    return {policy: policy for policy in same} | blocks


def testbed_profile(frames: int = PROBE_FRAMES, options: Sequence[Policy] | None = None) -> Profile:
    """The probe of the bundled testbed on the first photographs of the bundled scene, for those of `candidates()`."""
    scene = Path(str(resources.files("accel") / "data" / "scene"))
    if not scene.is_dir():
        raise AccelError(f"this installation has no scene at {scene}; install the package again")
    images = load_images([scene], TESTBED).tensor[:, :frames]
    return probe(
        load_model("testbed"),
        images,
        frames=frames,
        options=tuple(candidates()) if options is None else options,
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )


def depth_mapped(profile: Profile, config: VGGTConfig, layout: TokenLayout) -> Profile:
    """A testbed profile as one of VGGT(config) at this grid: layers by relative depth, the policies of its sizes.

    Heads stay the testbed's, over which errors are averaged. `layout`: its frames do not matter.
    """
    data, seen = profile.data, profile.layout
    data = data.isel(layer=by_depth(range(profile.layers), config.depth)).assign_coords(layer=np.arange(config.depth))
    # the layers that stand for one of the testbed's move the outputs together as much as that one
    data = data.assign(sensitivity=data["sensitivity"] * (profile.layers / config.depth))
    there = replace(layout, frames=seen.frames)
    for name in ("query", "term_query"):  # which frame a sampled query lies in is what is read of it
        frame, place = np.divmod(data[name].values, seen.tokens_per_frame)
        moved = frame * there.tokens_per_frame + np.minimum(place, there.tokens_per_frame - 1)
        data = data.assign({name: xr.DataArray(moved, dims=data[name].dims, attrs=data[name].attrs)})
    as_used = candidates()
    data.attrs = dict(profile.data.attrs) | {
        "layout": json.dumps(there.to_dict()),
        "config": config.to_json(),
        "measured": json.dumps([as_used.get(policy, policy).to_dict() for policy in profile.measured]),
    }
    return Profile(data)


@dataclass(frozen=True, eq=False)
class CarriedErrors:
    """The predictor of a depth-mapped profile: errors of the testbed at as many frames of its own grid, by depth."""

    profile: Profile
    name: str = f"theory; {BASIS}"

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
        own = replace(self.profile.layout, frames=layout.frames)
        small = {used: tried for tried, used in candidates().items()}
        errors = TheoryPredictor()(self.profile, own, [small.get(policy, policy) for policy in policies])
        return errors[by_depth(range(self.profile.layers), profile.layers)]


def reference_schedule(
    profile: Profile, config: VGGTConfig, layout: TokenLayout, tolerance: float, device: Device
) -> Schedule:
    """The fastest schedule of VGGT(config) on a device within a predicted output difference; `profile`: the testbed's.

    The one choice per number of frames that the benchmark times as "planned". Errors of layers add; the four of 24
    layers that stand for one of the testbed's six share its sensitivity. The testbed itself gets no block-sparse
    attention: blocks of its sizes are slower than dense. AccelError as `accel.plan`.
    """
    own = replace(profile.layout, frames=layout.frames)
    pairs = [(tried, used) for tried, used in candidates().items() if tried in profile.measured]
    if config == TESTBED:
        pairs = [(tried, used) for tried, used in pairs if not isinstance(used, BlockSparse)]
    options = strided([used for tried, used in pairs if allows(tried, own)], layout)
    mapped = depth_mapped(profile, config, layout)
    return plan(mapped, layout, predictor=CarriedErrors(profile), tolerance=tolerance, device=device, options=options)
