"""What is peculiar to `QueryMerge`; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Merge, QueryMerge
from tests import tolerances
from tests.accel.policies.inputs import LAYOUT, B, H, error, normal, qkv


def test_equal_queries_are_exact_whatever_the_keys():
    q, k, v = qkv()
    index = QueryMerge(0.4, cell=(2, 2)).matching.destinations(LAYOUT).nonzero()[:, 0]
    copy = index[torch.arange(LAYOUT.tokens) * 7 % len(index)]
    copy[index] = index
    want = scaled_dot_product_attention(q[:, :, copy], k, v)
    for correct in (True, False):
        policy = QueryMerge(0.4, cell=(2, 2), correct=correct)
        got = policy.attend(q[:, :, copy], k, v, LAYOUT)
        torch.testing.assert_close(got, want, **tolerances.ROUNDING_F64)


def test_rows_are_exact_outputs_at_the_mean_queries():
    q, k, v = qkv()
    policy = QueryMerge(0.5, correct=False)
    groups = policy.groups(q, LAYOUT)
    assert groups.row.shape == (B, 1, LAYOUT.tokens) and groups.mass.max() > 1
    want = scaled_dot_product_attention(groups.merge(q), k, v)[:, :, groups.row[0, 0]]
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT)[:1], want[:1], **tolerances.ROUNDING_F64)


def test_first_order_beats_the_copy_and_exact_keys_beat_merged_ones():
    q, k, v = qkv()
    want = scaled_dot_product_attention(q, k, v)
    copied, first_order = (error(QueryMerge(0.5, correct=x).attend(q, k, v, LAYOUT), want) for x in (False, True))
    assert first_order < copied
    assert first_order < error(Merge(0.5).attend(q, k, v, LAYOUT), want)


def test_frame_0_is_merged_too_and_specials_are_not():
    matching = QueryMerge(0.4, cell=(2, 2)).matching
    chosen = matching.destinations(LAYOUT)
    assert chosen[LAYOUT.special_index()].all()
    assert (chosen[LAYOUT.grid()].sum((1, 2)) == 6).all()


def test_published_setting():
    found = [QueryMerge.spark3r(frames) for frames in (100, 101, 300, 301, 500, 501)]
    assert [round(1 / policy.keep) for policy in found] == [1, 2, 2, 3, 3, 4]
    assert {(policy.window, policy.correct, policy.channels) for policy in found} == {(20, False, None)}
    layout = TokenLayout(45, 5, 6, 6)
    q = normal(3, 1, H, layout.tokens, 4)
    groups = found[1].groups(q, layout)
    to = layout.frame_of()[groups.representative[0, 0, groups.row[0, 0]]]
    assert torch.equal(to // 20, layout.frame_of() // 20)
    assert groups.mass.shape[-1] == found[1].kept_queries(layout) == round(layout.tokens / 2)


def test_query_merge_refuses():
    with pytest.raises(AccelError, match="query merge keep=2"):
        QueryMerge(2)
    with pytest.raises(AccelError, match="query merge correct='no' must be true or false"):
        QueryMerge(correct="no")
    with pytest.raises(AccelError, match="query merge needs at least 2 frames"):
        QueryMerge().check(TokenLayout(1, 2, 4, 4))
    with pytest.raises(AccelError, match="query merge has no patches"):
        QueryMerge().check(TokenLayout(3, 2, 0, 0))
    with pytest.raises(AccelError, match="cell 5x5 is larger"):
        QueryMerge(cell=(5, 5)).check(LAYOUT)
