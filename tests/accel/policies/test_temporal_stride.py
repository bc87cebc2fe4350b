"""What is peculiar to `TemporalStride`; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Exact, TemporalStride
from tests import tolerances
from tests.accel.policies.inputs import LAYOUT, qkv

LONG = TokenLayout(frames=11, special=2, grid_h=2, grid_w=3)


def frames_of(tokens):
    return (tokens // LONG.tokens_per_frame).tolist()


@pytest.mark.parametrize(
    ("stride", "nearest"),
    [(2, [0, 2, 2, 2, 4, 4, 6, 6, 8, 8, 10]), (3, [0, 3, 3, 3, 3, 6, 6, 6, 9, 9, 9]), (10, [0] + 10 * [10])],
)
def test_the_nearest_kept_frame_stands_in_and_frame_0_for_itself_only(stride, nearest):
    chosen = TemporalStride(stride).select(LONG)
    patches = chosen.stand_in[LONG.patch_index()]
    assert frames_of(patches[:: LONG.patches_per_frame]) == nearest
    assert (patches % LONG.tokens_per_frame == LONG.patch_index() % LONG.tokens_per_frame).all()
    assert not chosen.dropped[LONG.special_index()].any()
    assert len(chosen.kept) == TemporalStride(stride).kept_keys(LONG) and chosen.mass.sum() == LONG.tokens
    assert (chosen.mass[: LONG.tokens_per_frame] == 1).all()


@pytest.mark.parametrize(("own_key", "fill"), [(True, "mass"), (False, "mass"), (True, "shrink")])
def test_exact_where_frames_repeat(own_key, fill):
    policy = TemporalStride(3, own_key=own_key, fill=fill, shrinkage=1.0 if fill == "shrink" else None)
    q, k, v = qkv()
    stand_in = policy.select(LAYOUT).stand_in
    k, v = k[:, :, stand_in], v[:, :, stand_in]
    want = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT), want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])


def test_published_strides():
    found = [TemporalStride.spark3r(frames) for frames in (4, 100, 101, 400, 1000)]
    assert [policy.stride for policy in found] == [1, 1, 3, 10, 25]
    assert all(policy.fill == "none" and not policy.own_key for policy in found)
    assert TemporalStride.spark3r(1000, reduction=3).stride == 75
    q, k, v = qkv()
    assert torch.equal(TemporalStride.spark3r(4).attend(q, k, v, LAYOUT), Exact().attend(q, k, v, LAYOUT))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (TokenLayout(1, 2, 4, 4), "at least 2 frames"),
        (TokenLayout(4, 2, 0, 0), "no patches"),
        (TokenLayout(3, 2, 4, 4), "leaves frame 0 alone .* below 3"),
    ],
)
def test_refuses_a_layout(layout, message):
    with pytest.raises(AccelError, match=message):
        TemporalStride(3).attend(*qkv(layout), layout)


@pytest.mark.parametrize("fields", [{"stride": 0}, {"stride": 2.0}, {"fill": "all"}, {"own_key": "false"}])
def test_refuses_fields(fields):
    with pytest.raises(AccelError, match=next(iter(fields))):
        TemporalStride(**fields)
