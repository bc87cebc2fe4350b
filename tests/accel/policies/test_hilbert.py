"""Hilbert order: a permutation, neighbour to neighbour on squares, and closer blocks than raster order."""

import pytest
import torch

from accel.errors import AccelError
from accel.policies.hilbert import hilbert_order


def places(grid_h, grid_w):
    order = hilbert_order(grid_h, grid_w)
    return torch.stack([order // grid_w, order % grid_w], 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 2), (4, 5), (8, 8), (28, 37), (37, 28)])
def test_every_cell_once(size):
    assert hilbert_order(*size).sort().values.tolist() == list(range(size[0] * size[1]))


@pytest.mark.parametrize("side", [2, 4, 8, 32])
def test_steps_of_one_on_squares(side):
    at = places(side, side)
    assert (at.diff(dim=0).abs().sum(1) == 1).all()
    assert (at[-1] - at[0]).abs().sum() == side - 1  # ends at the other end of a side


def test_first_curves_by_hand():
    assert hilbert_order(2, 2).tolist() in ([0, 1, 3, 2], [0, 2, 3, 1])
    assert len(set(hilbert_order(4, 4)[:4].tolist()) & {0, 1, 4, 5}) == 4  # a quadrant before the next


def test_blocks_are_compact_on_a_rectangle():
    """Mean squared radius of blocks of 64 patches on VGGT's grid: near a square's 2 (64 - 1)/12, not a strip's."""

    def radius(at):
        blocks = at[: len(at) // 64 * 64].view(-1, 64, 2).double()
        return (blocks - blocks.mean(1, keepdim=True)).square().sum(2).mean().item()

    raster = torch.cartesian_prod(torch.arange(28), torch.arange(37))
    assert radius(places(28, 37)) < 2 * 2 * 63 / 12 < radius(raster) / 3


def test_no_cells():
    with pytest.raises(AccelError, match="0x4"):
        hilbert_order(0, 4)
