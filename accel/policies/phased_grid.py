"""A grid of patches that moves from frame to frame (RegimeVGGT, arXiv 2606.18439, its K/V step)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies.base import Policy
from accel.policies.key_subset import KeySubset

TILES = {1.3: (4, 3), 1.5: (3, 2), 1.7: (5, 3)}
"""(tile, keep) of the published strides sigma: 56, 44 and 36 % of the patches."""


@dataclass(frozen=True)
class PhasedGrid(KeySubset):
    """Keep rows and columns r, c of frame f with (r + f // t) % t < n and (c + f) % t < n: t = `tile`, n = `keep`.

    All specials and frame 0 are kept. t^2 frames in a row see every phase, so that what a fixed grid misses at one
    place is seen in the next frames, and the errors of the frames agree less: with one phase for all, the part of the
    error that they share does not shrink with their number, with phases it does (meanfield.reductions.theory.grid,
    shared=False). A dropped patch is stood for by the nearest kept row and column of its frame (the lower of two). With
    fill "mass", the default, it is exact where patches equal their stand-in. At keep 1 it costs what `Subsample` with
    window t x t costs. The paper's setting is `regime`. Exact for keep = tile.

    AccelError for one frame, no patches, a tile larger than the grid.
    """

    tile: int = 2
    keep: int = 1
    own_key: bool = field(default=True, kw_only=True)
    fill: str = field(default="mass", kw_only=True)

    name: ClassVar[str] = "phased_grid"

    def __post_init__(self) -> None:
        if not (type(self.tile) is type(self.keep) is int and 1 <= self.keep <= self.tile):
            raise AccelError(f"tile={self.tile!r}, keep={self.keep!r} must be integers with 1 <= keep <= tile")
        super().__post_init__()

    @classmethod
    def regime(cls, sigma: float = 1.5) -> PhasedGrid:
        """The published setting (there on merged tokens: see `Compose`), without masses or own keys."""
        if sigma not in TILES:
            raise AccelError(f"sigma={sigma!r} has no published tile; use one of {list(TILES)}, or give tile and keep")
        tile, keep = TILES[sigma]
        return cls(tile, keep, own_key=False, fill="none")

    def check(self, layout: TokenLayout) -> None:
        super().check(layout)
        if self.tile > min(layout.grid_h, layout.grid_w):
            raise AccelError(f"phased_grid tile {self.tile} is larger than the grid of {layout}; use a smaller one")

    def _kept(self, size: int) -> Tensor:
        """Whether each row (or column) of `size` is kept, by phase: BoolTensor (tile, size)."""
        return (torch.arange(self.tile)[:, None] + torch.arange(size)) % self.tile < self.keep

    def _nearest(self, size: int) -> Tensor:
        """The nearest kept row (or column) to each of `size`, by phase: LongTensor (tile, size)."""
        line = torch.arange(size)
        distance = (line[:, None] - line).abs() + size * ~self._kept(size)[:, None]
        return distance.argmin(-1)

    def stand_in(self, layout: TokenLayout, *, device: torch.device | str | None = None) -> Tensor:
        """The nearest kept row and column of the same frame; specials and frame 0 are kept."""
        frame = torch.arange(1, layout.frames, device=device)
        row = self._nearest(layout.grid_h).to(device)[frame // self.tile % self.tile]
        column = self._nearest(layout.grid_w).to(device)[frame % self.tile]
        stand_in = torch.arange(layout.tokens, device=device)
        grid = layout.grid(device=device)[1:]
        stand_in[grid] = grid[:, :1, :1] + row[:, :, None] * layout.grid_w + column[:, None]
        return stand_in

    def kept_keys(self, layout: TokenLayout) -> int:
        """M = |S|."""
        rows, columns = (self._kept(size).sum(1).tolist() for size in (layout.grid_h, layout.grid_w))
        period = self.tile**2
        patches = layout.patches_per_frame  # of frame 0
        for f in range(1, period + 1):  # frames f, f + period, ...
            frames = max(0, -(-(layout.frames - f) // period))
            patches += frames * rows[f // self.tile % self.tile] * columns[f % self.tile]
        return layout.frames * layout.special + patches

    def describe(self) -> str:
        return f"phased grid: {self.keep} of {self.tile} rows and columns, moving, {self.fill_words()}"

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls(2, 2),
            cls(),
            cls(3, 1, fill="shrink", shrinkage=0.5),
            cls(4, 3, own_key=False, fill="published"),
            cls.regime(1.5),
        )
