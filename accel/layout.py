"""Where the special tokens, the patches and the frames are in the token sequence of a global-attention layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from accel.errors import AccelError


@dataclass(frozen=True)
class TokenLayout:
    """N = frames * (special + grid_h * grid_w) tokens: frame after frame, in each the specials first, then the patches.

    Token n belongs to frame n // P and has place n % P in it, P = `tokens_per_frame`; places below `special` are
    special tokens (camera, registers), place special + r * grid_w + c is the patch of row r and column c.
    A layout without patches has grid_h = grid_w = 0.
    """

    frames: int
    special: int
    grid_h: int
    grid_w: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise AccelError(f"TokenLayout.{field.name}={value!r} is not an integer; pass an int")
        if self.frames < 1:
            raise AccelError(f"TokenLayout.frames={self.frames} must be at least 1")
        if self.special < 0:
            raise AccelError(f"TokenLayout.special={self.special} must be 0 or more")
        if min(self.grid_h, self.grid_w) < 0 or (self.grid_h == 0) != (self.grid_w == 0):
            raise AccelError(
                f"TokenLayout grid {self.grid_h}x{self.grid_w} must have both sides positive, or both 0 (no patches)"
            )
        if self.tokens_per_frame < 1:
            raise AccelError(f"{self} has no tokens; give special >= 1 or a grid")

    @property
    def patches_per_frame(self) -> int:
        return self.grid_h * self.grid_w

    @property
    def tokens_per_frame(self) -> int:
        """P."""
        return self.special + self.patches_per_frame

    @property
    def tokens(self) -> int:
        """N."""
        return self.frames * self.tokens_per_frame

    def check(self, tokens: int) -> None:
        """Raise AccelError unless a sequence of this many tokens has this layout."""
        if tokens != self.tokens:
            raise AccelError(
                f"N={tokens} is not frames*(special+grid_h*grid_w) for {self} (that is {self.tokens}); "
                "pass the layout of the model that made these tokens, model.layout(images)"
            )

    def special_index(self, *, device: torch.device | str | None = None) -> Tensor:
        """Token indices of the specials, ascending: LongTensor (frames * special,)."""
        return self.by_frame(device=device)[:, : self.special].reshape(-1)

    def patch_index(self, *, device: torch.device | str | None = None) -> Tensor:
        """Token indices of the patches, ascending: LongTensor (frames * grid_h * grid_w,)."""
        return self.by_frame(device=device)[:, self.special :].reshape(-1)

    def frame_of(self, *, device: torch.device | str | None = None) -> Tensor:
        """The frame of each token: LongTensor (N,)."""
        return torch.arange(self.frames, device=device).repeat_interleave(self.tokens_per_frame)

    def by_frame(self, *, device: torch.device | str | None = None) -> Tensor:
        """Token indices as a table, one row per frame: LongTensor (frames, P)."""
        return torch.arange(self.tokens, device=device).reshape(self.frames, self.tokens_per_frame)

    def grid(self, *, device: torch.device | str | None = None) -> Tensor:
        """Token indices of the patches in their grids: LongTensor (frames, grid_h, grid_w)."""
        return self.patch_index(device=device).reshape(self.frames, self.grid_h, self.grid_w)

    def to_dict(self) -> dict[str, int]:
        """A JSON-ready dictionary; `TokenLayout.from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenLayout:
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise AccelError(f"TokenLayout needs exactly the fields {sorted(names)}, got {sorted(data)}")
        return cls(**data)
