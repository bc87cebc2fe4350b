"""Temporal-stride pruning: the patches of every r-th frame as keys (Spark3R, arXiv 2605.06270, its K/V step)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies.base import Policy
from accel.policies.key_subset import KeySubset


@dataclass(frozen=True)
class TemporalStride(KeySubset):
    """Keep the patches of frames 0, r, 2r, ... (r = `stride`), and the special tokens of all frames.

    A dropped patch is stood for by the patch of its place in the nearest kept frame other than 0 (the earlier of two),
    so that frame 0, which many heads use as an anchor, keeps weight one. With fill "mass", the default, it is exact
    where the frames that share a kept one agree patch by patch; the errors of one frame's keys are common to all
    queries and do not average out, so it needs slow camera motion. The query's own key is there (`own_key`); its whole
    own frame, at P keys more, was no better than as many keys from more frames. Exact for stride 1.

    The paper's setting is `spark3r`; it does not say what becomes of the special tokens, which are kept here.
    AccelError for one frame, and where the stride leaves frame 0 alone.
    """

    stride: int = 2
    own_key: bool = field(default=True, kw_only=True)
    fill: str = field(default="mass", kw_only=True)

    name: ClassVar[str] = "temporal_stride"

    def __post_init__(self) -> None:
        if type(self.stride) is not int or self.stride < 1:
            raise AccelError(f"stride={self.stride!r} must be an integer, at least 1 (every frame)")
        super().__post_init__()

    @classmethod
    def spark3r(cls, frames: int, *, reduction: int = 1) -> TemporalStride:
        """The published stride, ceil(frames/40) above 100 frames and 1 up to there, without masses or own keys.

        reduction multiplies it: 3 in the layers that the paper's probe finds insensitive.
        """
        return cls(stride=(-(-frames // 40) if frames > 100 else 1) * reduction, own_key=False, fill="none")

    def check(self, layout: TokenLayout) -> None:
        super().check(layout)
        if self.stride >= layout.frames:
            raise AccelError(
                f"temporal_stride {self.stride} leaves frame 0 alone in {layout}; use a stride below {layout.frames}"
            )

    def stand_in(self, layout: TokenLayout, *, device: torch.device | str | None = None) -> Tensor:
        """The same place in the nearest kept frame; specials and frame 0 are kept."""
        last = (layout.frames - 1) // self.stride * self.stride
        frame = torch.arange(layout.frames, device=device)
        nearest = ((frame + (self.stride - 1) // 2) // self.stride * self.stride).clamp(self.stride, last)
        nearest[0] = 0
        table = layout.by_frame(device=device)
        return torch.cat([table[:, : layout.special], table[nearest, layout.special :]], 1).reshape(-1)

    def kept_keys(self, layout: TokenLayout) -> int:
        """M = |S|."""
        return layout.frames * layout.special + -(-layout.frames // self.stride) * layout.patches_per_frame

    def describe(self) -> str:
        return f"temporal stride: patches of 1 frame in {self.stride}, {self.fill_words()}"

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls(stride=1),
            cls(stride=2),
            cls(stride=3, fill="shrink"),
            cls(stride=2, own_key=False, fill="none"),
            cls(stride=3, own_key=False, fill="count"),
        )
