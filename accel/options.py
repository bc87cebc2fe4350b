"""What a planner chooses from: policies that a probe measures, and their strengths that suit more frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import BlockSparse, Exact, Frame, Merge, PhasedGrid, Policy, Subsample, TemporalStride

KEPT_FRAMES = (8, 16, 32, 64)
"""Frames whose patches a temporal stride keeps, where it is carried to more frames than the probe's."""


def default_options(layout: TokenLayout) -> tuple[Policy, ...]:
    """The candidates that this layout allows and that cost less there than exact: all kinds, gentle to strong."""
    exact_flops = Exact().cost(layout, 1, 1).flops
    options = (
        Exact(),
        Frame(),
        *(Subsample(stride=s, fill="shrink") for s in (2, 4, 8, 16)),
        Subsample.avggt(4),
        PhasedGrid(),
        PhasedGrid(3, 1, fill="shrink"),
        PhasedGrid(4, 1),
        TemporalStride(3, fill="shrink"),
        Merge(0.5),
        Merge(0.25),
        Merge(0.12),
        BlockSparse(0.25),
    )
    allowed = [policy for policy in options if allows(policy, layout)]
    return tuple(p for p in allowed if p.name == "exact" or p.cost(layout, 1, 1).flops < exact_flops)


def allows(policy: Policy, layout: TokenLayout) -> bool:
    """Whether the policy can be applied to this layout."""
    try:
        policy.check(layout)
    except AccelError:
        return False
    return True


def strided(options: Sequence[Policy], layout: TokenLayout) -> tuple[Policy, ...]:
    """The options, and of each temporal stride the longer ones that keep 8, 16, 32 and 64 frames of this layout.

    A share of the keys that is fixed leaves attention quadratic in the frames; a number of frames does not.
    """
    found = list(options)
    for policy in options:
        if isinstance(policy, TemporalStride):
            strides = sorted({-(-layout.frames // kept) for kept in KEPT_FRAMES})
            found += [replace(policy, stride=stride) for stride in strides if stride > policy.stride]
    return tuple(dict.fromkeys(found))


def probed(policy: Policy, measured: Sequence[Policy]) -> Policy:
    """Which of the measured policies says the error of this one: itself, or for a temporal stride the one that differs
    in the stride alone, since its noise is known for every stride (`accel.error_terms.noise_factor`).

    AccelError where there is none. Exact needs none.
    """
    if policy in measured or policy == Exact():
        return policy
    if isinstance(policy, TemporalStride):
        for other in measured:
            if isinstance(other, TemporalStride) and replace(other, stride=policy.stride) == policy:
                return other
    raise AccelError(f"{policy} was not probed; probe with options=(..., {policy!r})")
