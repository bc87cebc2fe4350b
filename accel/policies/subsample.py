"""Key subsampling on a grid (AVGGT's second step, arXiv 2512.02541).

Written from the paper's description; where its formula is not public, the reading taken here is said in `KeySubset`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies.base import Policy, check_flags
from accel.policies.key_subset import KeySubset

WINDOWS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 6: (2, 3), 8: (2, 4), 9: (3, 3), 16: (4, 4)}
"""Windows (rows, columns) of the named strides; 2, 4, 6 and 9 are the published ones."""


@dataclass(frozen=True)
class Subsample(KeySubset):
    """Keep all specials, all of frame 0 (`keep_first_frame`), and the first patch of each window elsewhere.

    A kept patch stands for its window (partial windows at the border: what they hold). The query's own key, and what
    `fill` and `shrinkage` do about the dropped keys, are those of `KeySubset`: with fill "mass" it is exact where the
    patches of a window coincide. `stride` names a window (see WINDOWS), or give `window` = (rows, columns); the other
    one is filled in. Exact for stride 1.
    """

    stride: int | None = None
    window: tuple[int, int] | None = None
    keep_first_frame: bool = True

    name: ClassVar[str] = "subsample"

    def __post_init__(self) -> None:
        check_flags(self.name, keep_first_frame=self.keep_first_frame)
        window = self.window
        if window is None:
            stride = 4 if self.stride is None else self.stride
            window = WINDOWS.get(stride) if type(stride) is int else None
            if window is None:
                raise AccelError(f"stride={self.stride!r} has no window; use one of {list(WINDOWS)}, or give window")
        if (
            not isinstance(window, tuple | list)
            or len(window) != 2
            or not all(type(n) is int and n >= 1 for n in window)
        ):
            raise AccelError(f"window={window!r} must be two integers (rows, columns), each at least 1")
        if self.stride not in (None, window[0] * window[1]):
            raise AccelError(f"stride={self.stride} disagrees with window={window}; give one of the two")
        super().__post_init__()
        object.__setattr__(self, "window", tuple(window))
        object.__setattr__(self, "stride", window[0] * window[1])

    @classmethod
    def avggt(cls, stride: int = 4, *, keep_first_frame: bool = True) -> Subsample:
        """The published setting (VGGT; for pi3 keep_first_frame=False). Its first layers use `Frame` instead."""
        return cls(stride=stride, keep_first_frame=keep_first_frame, fill="published")

    def check(self, layout: TokenLayout) -> None:
        super().check(layout)
        rows, columns = self.window
        if rows > layout.grid_h or columns > layout.grid_w:
            raise AccelError(
                f"subsample window {rows}x{columns} is larger than the grid of {layout}; use a smaller one"
            )

    def stand_in(self, layout: TokenLayout, *, device: torch.device | str | None = None) -> Tensor:
        """The first patch of the window of each patch; specials, and frame 0 where it is whole, are kept."""
        rows, columns = self.window
        grid, stand_in = layout.grid(device=device), torch.arange(layout.tokens, device=device)
        row = torch.arange(layout.grid_h, device=device) // rows * rows
        column = torch.arange(layout.grid_w, device=device) // columns * columns
        whole = int(self.keep_first_frame)
        stand_in[grid[whole:]] = grid[whole:][:, row][:, :, column]
        return stand_in

    def kept_keys(self, layout: TokenLayout) -> int:
        """M = |S|."""
        sampled = layout.frames - self.keep_first_frame
        per_frame = ceil(layout.grid_h / self.window[0]) * ceil(layout.grid_w / self.window[1])
        return layout.tokens - sampled * (layout.patches_per_frame - per_frame)

    def describe(self) -> str:
        rows, columns = self.window
        first = "frame 0 whole" if self.keep_first_frame else "every frame alike"
        return f"subsample: 1 patch in {self.stride} ({rows}x{columns}), {first}, {self.fill_words()}"

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls(stride=1),
            cls(stride=2),
            cls.avggt(4),
            cls(stride=4, fill="count"),
            cls(window=(3, 2), keep_first_frame=False, fill="count"),
            cls(stride=6, fill="mass"),
            cls(stride=4, keep_first_frame=False, fill="shrink"),
            cls(stride=9, fill="shrink", shrinkage=(0.25, 0.75)),
        )
