"""What is peculiar to `PhasedGrid`; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend_naive
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import PhasedGrid, Subsample
from tests import tolerances
from tests.accel.policies.inputs import LAYOUT, error, normal, qkv

LONG = TokenLayout(frames=21, special=2, grid_h=4, grid_w=5)


def kept_of(policy, frame):
    """The kept patches of a frame, as a grid of 0 and 1."""
    return (~policy.select(LONG).dropped)[LONG.grid()[frame]].int().tolist()


def test_the_grid_moves_with_the_frame():
    policy = PhasedGrid(2, 1)
    assert kept_of(policy, 1) == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]] * 2  # row phase 0, column phase 1
    assert kept_of(policy, 2) == [[0, 0, 0, 0, 0], [1, 0, 1, 0, 1]] * 2  # row phase 1, column phase 0
    assert kept_of(policy, 4) == [[1, 0, 1, 0, 1], [0, 0, 0, 0, 0]] * 2
    assert kept_of(policy, 0) == [[1] * 5] * 4  # frame 0 whole


@pytest.mark.parametrize("policy", [*PhasedGrid.examples(), PhasedGrid(4, 1)], ids=lambda p: f"{p.tile}-{p.keep}")
def test_every_place_is_seen_and_counted(policy):
    chosen = policy.select(LONG)
    assert len(chosen.kept) == policy.kept_keys(LONG) and chosen.mass.sum() == LONG.tokens
    assert not chosen.dropped[LONG.special_index()].any()
    period = (~chosen.dropped)[LONG.grid()[1 : 1 + policy.tile**2]]
    assert (period.sum(0) == policy.keep**2).all()
    assert torch.equal(chosen.stand_in // LONG.tokens_per_frame, LONG.frame_of())


def test_exact_where_patches_equal_their_stand_in():
    policy = PhasedGrid(3, 2)
    q, k, v = qkv()
    stand_in = policy.select(LAYOUT).stand_in
    k, v = k[:, :, stand_in], v[:, :, stand_in]
    want = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT), want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])


def test_frames_with_one_picture_err_less_than_on_a_fixed_grid():
    """Patches that repeat from frame to frame: a fixed grid misses the same ones in each, the moving one none."""
    place = torch.arange(LONG.tokens) % LONG.tokens_per_frame
    q, k, v = (normal(seed, 1, 2, LONG.tokens_per_frame, 8)[:, :, place] for seed in (1, 2, 3))
    exact = attend_naive(q, k, v)[0]
    fixed, moving = (p.attend(q, k, v, LONG) for p in (Subsample(stride=4, fill="mass"), PhasedGrid(2, 1)))
    assert error(moving, exact) < error(fixed, exact) / 2


def test_published_setting():
    assert [(PhasedGrid.regime(s).tile, PhasedGrid.regime(s).keep) for s in (1.3, 1.5, 1.7)] == [(4, 3), (3, 2), (5, 3)]
    assert PhasedGrid.regime().fill == "none" and not PhasedGrid.regime().own_key
    with pytest.raises(AccelError, match=r"sigma=2 has no published tile; use one of \[1.3"):
        PhasedGrid.regime(2)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (TokenLayout(1, 2, 4, 4), "at least 2 frames"),
        (TokenLayout(4, 2, 0, 0), "no patches"),
        (TokenLayout(4, 2, 4, 2), "tile 3 is larger than the grid"),
    ],
)
def test_refuses_a_layout(layout, message):
    with pytest.raises(AccelError, match=message):
        PhasedGrid(3, 2).attend(*qkv(layout), layout)


@pytest.mark.parametrize("fields", [(2, 3), (2, 0), (2.0, 1), (0, 0)])
def test_refuses_fields(fields):
    with pytest.raises(AccelError, match="1 <= keep <= tile"):
        PhasedGrid(*fields)
