"""The settings that papers publish, as schedules for any depth: what to compare a plan with; nothing is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import BlockSparse, Compose, Exact, Frame, Merge, PhasedGrid, Policy, Subsample
from accel.schedule import Schedule


def fastvggt(layout: TokenLayout, layers: int) -> tuple[Policy, ...]:
    """Token merging in every layer (arXiv 2509.02560)."""
    return (Merge.fastvggt(),) * layers


def avggt(layout: TokenLayout, layers: int) -> tuple[Policy, ...]:
    """Frame attention in the first 9 of 24 layers, keys subsampled by 4 in the others (arXiv 2512.02541)."""
    early = round(layers * 9 / 24)
    return (Frame(),) * early + (Subsample.avggt(4),) * (layers - early)


def faster_vggt(layout: TokenLayout, layers: int) -> tuple[Policy, ...]:
    """Block-sparse attention, a quarter of the blocks, in every layer (arXiv 2509.07120)."""
    return (BlockSparse.faster_vggt(0.75),) * layers


def spark3r(layout: TokenLayout, layers: int) -> tuple[Policy, ...]:
    """Merged queries and a temporal stride by the number of frames, in every layer (arXiv 2605.06270); exact up to 100.

    The paper's probe, which takes three times the stride in insensitive layers, is not applied: this computes more
    attention than the published method.
    """
    return (Compose.spark3r(layout.frames),) * layers


def regimevggt(layout: TokenLayout, layers: int) -> tuple[Policy, ...]:
    """Bands of layers (arXiv 2606.18439), of 24: in 0-9 all sources merged and a 3/2 grid, in 10-13 half of the tokens
    merged, in 14-17 that and a 4/3 grid, in 18-23 all merged and a 5/3 grid; masses, and one topology for a band (but a
    new one in each layer of 10-13).

    The paper protects tokens by the image encoder's class attention, which no policy sees: here a fixed stride.
    """
    merge = Merge(0.1, correct=False, metric="tokens", channels=None, cell=(2, 2), protect=0.1)
    bands = ((0, 10, 0.1, 1.5), (10, 14, 0.525, None), (14, 18, 0.525, 1.3), (18, 24, 0.1, 1.7))
    found: list[Policy] = []
    for first, end, keep, sigma in bands:
        count = round(end * layers / 24) - round(first * layers / 24)
        if sigma is None:
            found += [replace(merge, keep=keep)] * count
        elif count:
            shared = replace(merge, keep=keep, reuse=count - 1)
            found += [Compose((shared, PhasedGrid.regime(sigma)))] * count
    return tuple(found)


PUBLISHED: dict[str, Callable[[TokenLayout, int], tuple[Policy, ...]]] = {
    "fastvggt": fastvggt,
    "avggt": avggt,
    "faster-vggt": faster_vggt,
    "spark3r": spark3r,
    "regimevggt": regimevggt,
}


def published_schedule(name: str, layout: TokenLayout, layers: int) -> Schedule:
    """The published setting of this name for a model of so many global layers.

    A layer whose policy cannot serve the layout stays exact, with the reason in the schedule. Errors and sensitivities
    are zero: not predicted (`accel.validate` measures them). AccelError for an unknown name.
    """
    if name not in PUBLISHED:
        raise AccelError(f"{name!r} is no published setting; use one of {list(PUBLISHED)}")
    if layers < 1:
        raise AccelError(f"layers={layers} must be at least 1")
    policies, reasons = [], []
    for policy in PUBLISHED[name](layout, layers):
        try:
            policy.check(layout)
            policies.append(policy)
            reasons.append(f"{policy.name}: published setting {name}")
        except AccelError as error:
            policies.append(Exact())
            reasons.append(f"exact: {error}")
    zeros = (0.0,) * layers
    return Schedule(layout, tuple(policies), tuple(reasons), zeros, zeros, zeros, predictor=f"none ({name})")
