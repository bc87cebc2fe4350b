"""What is peculiar to `Subsample`; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend_naive
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Subsample, base, key_subset
from tests import tolerances
from tests.accel.policies.inputs import BIG, LAYOUT, B, D, H, error, qkv

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [2, 4, 6, 9])
def test_mass_is_exact_on_windows_of_equal_patches(stride, dtype):
    policy = Subsample(stride=stride, fill="mass")
    stand_in = policy.select(LAYOUT).stand_in
    q, k, v = (t[:, :, stand_in] for t in qkv(dtype=dtype))
    want = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT), want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


def test_published_setting():
    policy = Subsample.avggt()
    assert policy == Subsample(stride=4, window=(2, 2), keep_first_frame=True, fill="published")
    kept = policy.select(LAYOUT).kept
    P = LAYOUT.tokens_per_frame
    assert kept[kept < P].tolist() == list(range(P))
    assert (kept[(kept >= P) & (kept < 2 * P)] - P).tolist() == [0, 1, 2, 4, 6, 12, 14, 16]
    for example in Subsample.examples():
        chosen = example.select(LAYOUT)
        assert len(chosen.kept) == example.kept_keys(LAYOUT)
        assert chosen.mass.sum() == LAYOUT.tokens


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (TokenLayout(4, 2, 0, 0), "no patches"),
        (TokenLayout(1, 2, 4, 4), "at least 2 frames"),
        (TokenLayout(4, 2, 4, 2), "window 2x3 is larger"),
    ],
)
def test_subsample_refuses_a_layout(layout, message):
    with pytest.raises(AccelError, match=message):
        Subsample(stride=6).check(layout)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 5}, "stride=5 has no window"),
        ({"stride": 4, "window": (2, 3)}, "disagrees"),
        ({"window": (0, 2)}, "at least 1"),
        ({"window": 3}, "two integers"),
        ({"stride": True}, "stride=True has no window"),
        ({"stride": [4]}, "has no window"),
        ({"keep_first_frame": "false"}, "subsample keep_first_frame='false' must be true or false"),
        ({"fill": "shrink", "shrinkage": True}, "shrinkage=True"),
        ({"fill": "mean"}, "fill='mean' is not one of"),
        ({"shrinkage": 0.5}, 'needs fill="shrink"'),
        ({"fill": "shrink", "shrinkage": 1.5}, r"in \[0, 1\]"),
        ({"fill": "shrink", "shrinkage": (0.5, float("nan"))}, r"in \[0, 1\]"),
    ],
)
def test_subsample_refuses_fields(fields, message):
    with pytest.raises(AccelError, match=message):
        Subsample(**fields)


def test_lists_are_taken():
    assert hash(Subsample(window=[2, 2])) == hash(Subsample(stride=4))
    assert Subsample(fill="shrink", shrinkage=[0.1, 0.2]) == Subsample(fill="shrink", shrinkage=(0.1, 0.2))


def test_shrinkage_needs_one_value_per_head():
    with pytest.raises(AccelError, match="3 values for 2 heads"):
        Subsample(fill="shrink", shrinkage=(0.1, 0.2, 0.3)).attend(*qkv(), LAYOUT)


@pytest.mark.parametrize("policy", Subsample.examples(), ids=lambda p: f"{p.stride}-{p.fill}")
def test_blocks_of_queries_change_nothing(policy, monkeypatch):
    q, k, v = qkv()
    want = policy.attend(q, k, v, LAYOUT)
    monkeypatch.setattr(base, "BLOCK_ELEMENTS", 7 * B * H * D)
    got = policy.attend(q, k, v, LAYOUT)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])


def test_fitted_shrinkage_helps_a_nearly_uniform_head():
    """Logits near 0: the exact output is near the mean of v, which shrinkage finds and plain weighting does not."""
    q, k, v = qkv(BIG)
    want = attend_naive(0.05 * q, k, v)[0]
    plain, shrunk = (
        error(Subsample(stride=9, fill=fill).attend(0.05 * q, k, v, BIG), want) for fill in ("mass", "shrink")
    )
    assert shrunk < 0.5 * plain


def test_probe_queries_are_distinct_and_cover_the_places_of_a_frame():
    index = key_subset.spread(BIG.tokens, 200)
    assert len(index) == len(index.unique()) > 190 and index.max() < BIG.tokens
    assert len((index % BIG.tokens_per_frame).unique()) > 0.6 * BIG.tokens_per_frame
