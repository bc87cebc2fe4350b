"""Hilbert order of a rectangle of patches: tokens that are near in the sequence are near in the image."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.errors import AccelError


def hilbert_order(grid_h: int, grid_w: int) -> Tensor:
    """Row-major indices r * grid_w + c of a grid_h x grid_w grid in the order of a Hilbert curve, LongTensor (h*w,).

    The curve (Hilbert 1891) fills the enclosing square whose side is a power of two; cells outside the rectangle are
    left out. On such a square consecutive cells are neighbours; on another rectangle the curve may jump where it was
    outside. O(side^2) integers.
    """
    if min(grid_h, grid_w) < 1:
        raise AccelError(f"grid {grid_h}x{grid_w} has no cells; both sides must be at least 1")
    side = 1
    while side < max(grid_h, grid_w):
        side *= 2
    place = torch.arange(side * side)
    row, column = torch.zeros_like(place), torch.zeros_like(place)
    size = 1
    while size < side:  # the curve of 2 size is four curves of size: two as they are, two reflected at a diagonal
        right = place // 2 % 2
        down = (place + right) % 2
        turned = (right == 1) & (down == 0)
        row, column = torch.where(turned, size - 1 - row, row), torch.where(turned, size - 1 - column, column)
        row, column = torch.where(down == 0, column, row), torch.where(down == 0, row, column)
        row, column = row + size * down, column + size * right
        place, size = place // 4, 2 * size
    inside = (row < grid_h) & (column < grid_w)
    return row[inside] * grid_w + column[inside]
