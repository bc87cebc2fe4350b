"""What is peculiar to `Compose`; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend_naive
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Compose, Context, Exact, Merge, PhasedGrid, QueryMerge, Subsample, TemporalStride
from accel.policies.compose import select_rows
from accel.policies.key_subset import Selection
from tests import tolerances
from tests.accel.policies.inputs import BIG, LAYOUT, error, normal, qkv

MERGE, GRID = Merge(keep=0.6), Subsample(stride=4, fill="mass")


@pytest.mark.parametrize("subset", [GRID, TemporalStride(2), PhasedGrid(2, 1), Subsample(stride=4, fill="none")])
def test_mass_is_conserved(subset):
    """A row is a group, a dropped one is stood for by a kept one, and all the tokens are somewhere."""
    q, k, _ = qkv()
    groups, tokens = MERGE.groups(q, k, LAYOUT, Context()), subset.select(LAYOUT)
    for row, representative in zip(groups.row[:, 0], groups.representative[:, 0], strict=True):
        chosen, weight = select_rows(tokens, row, representative, mass=True)
        assert chosen.mass.sum() == weight.sum() == LAYOUT.tokens and (chosen.mass >= weight[chosen.kept]).all()
        assert torch.equal(chosen.dropped, tokens.dropped[representative])
        assert not chosen.dropped[chosen.stand_in].any()
        plain, none = select_rows(tokens, row, representative, mass=False)
        assert none is None and plain.mass.sum() == len(representative)


def test_exact_where_groups_and_windows_hold_one_token():
    """Every frame the same, every patch of it the same: merged and thinned away, the masses remain."""
    q, k, v = qkv()
    place = torch.arange(LAYOUT.tokens) % LAYOUT.tokens_per_frame
    place = place.clamp_max(LAYOUT.special)  # all patches are the first of frame 0
    q, k, v = (x[:, :, place] for x in (q, k, v))
    want = scaled_dot_product_attention(q, k, v)
    for first in (Merge(keep=0.5), Merge(keep=0.5, correct=False), QueryMerge(keep=0.5)):
        for second in (GRID, TemporalStride(3), PhasedGrid(2, 1, own_key=False)):
            got = Compose((first, second)).attend(q, k, v, LAYOUT)
            torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])


def test_each_part_alone_where_the_other_does_nothing():
    q, k, v = qkv()
    for policies, want in (
        ((MERGE, Subsample(stride=1)), MERGE),
        ((Merge(keep=1.0), GRID), GRID),
        ((QueryMerge(keep=1.0), TemporalStride(2)), TemporalStride(2)),
        ((QueryMerge(keep=1.0), TemporalStride(1)), Exact()),
    ):
        found = Compose(policies)
        assert torch.equal(found.attend(q, k, v, LAYOUT), want.attend(q, k, v, LAYOUT))
        assert found.cost(LAYOUT, 16, 2) == want.cost(LAYOUT, 16, 2)
        assert found.keys_per_query(LAYOUT) == want.keys_per_query(LAYOUT)


def test_the_declared_keys_are_those_of_the_rows():
    q, k, _ = qkv(BIG, batch=1)
    for subset in (GRID, TemporalStride(2)):
        groups = MERGE.groups(q, k, BIG, Context())
        chosen, _ = select_rows(subset.select(BIG), groups.row[0, 0], groups.representative[0, 0], True)
        declared, rows = Compose((MERGE, subset)).keys_per_query(BIG), len(groups.representative[0, 0])
        found = len(chosen.kept) + (rows - len(chosen.kept)) / rows
        assert abs(declared / found - 1) < tolerances.COMPOSED_KEYS


def test_it_is_cheaper_than_either_and_errs_more():
    q, k, v = qkv(BIG, batch=1)
    exact = attend_naive(q, k, v)[0]
    both = Compose((MERGE, GRID))
    assert both.cost(BIG, 64, 2).flops < min(MERGE.cost(BIG, 64, 2).flops, Exact().cost(BIG, 64, 2).flops)
    assert both.keys_per_query(BIG) < min(MERGE.keys_per_query(BIG), GRID.keys_per_query(BIG))
    assert error(both.attend(q, k, v, BIG), exact) > error(MERGE.attend(q, k, v, BIG), exact)


@pytest.mark.parametrize("fill", ["published", "count"])
@pytest.mark.parametrize("own_key", [True, False])
def test_no_row_is_left_to_drop(fill, own_key):
    """The destinations happen to be what the grid keeps: the mean of nothing must not enter."""
    layout, grid = TokenLayout(2, 1, 2, 2), PhasedGrid(2, 1, fill=fill, own_key=own_key)
    dropped, found = grid.select(layout).dropped, []
    for seed in range(12):
        merge = Merge(keep=0.1, cell=(2, 2), correct=False, seed=seed)
        q, k, v = qkv(layout)
        got = Compose((merge, grid)).attend(q, k, v, layout)
        assert torch.isfinite(got).all()
        if not (dropped & merge.matching.kept(layout)).any():
            found.append(got)
            torch.testing.assert_close(got, merge.attend(q, k, v, layout), **tolerances.ROUNDING_F64)
    assert found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_light_row_gives_back_a_heavy_one_in_half_precision(dtype):
    """Row 1, of 300 tokens, is stood for by row 0, of one; its query sees rows 0 and 2 alike."""
    q, k, v = (normal(seed, 1, 1, 3, 16) for seed in (1, 2, 3))
    k[:, :, 1], k[:, :, 2], q[:, :, 1] = -k[:, :, 0], k[:, :, 0], 2 * k[:, :, 0]
    q, k, v = (x.to(dtype) for x in (q, k, v))
    weight, dropped = torch.tensor([1, 300, 1]), torch.tensor([False, True, False])
    chosen = Selection(torch.tensor([0, 2]), torch.tensor([301, 1]), torch.tensor([0, 0, 2]), dropped)
    got = GRID.attend_to(q, k, v, chosen, 0.3, own_key=True, weight=weight)
    want = attend_naive(q[:, :, 1:2], k, v, log_mass=weight.log(), scale=0.3)[0]
    assert got.dtype == dtype
    torch.testing.assert_close(got[:, :, 1:2].double(), want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


def test_lists_are_taken():
    assert Compose([MERGE, GRID]) == Compose((MERGE, GRID))


def test_published_setting():
    assert Compose.spark3r(1000).policies == (QueryMerge.spark3r(1000), TemporalStride.spark3r(1000))


@pytest.mark.parametrize(
    "policies",
    [(), (MERGE,), (GRID, MERGE), (MERGE, MERGE), (MERGE, Exact()), (Exact(), GRID), (MERGE, GRID, GRID), GRID, (1, 2)],
)
def test_names_what_can_be_composed(policies):
    with pytest.raises(AccelError, match=r"give two policies: merge or query_merge, then .*subsample, temporal_stride"):
        Compose(policies)


def test_refuses_topologies_and_shrinkages_per_head_together():
    with pytest.raises(AccelError, match="give one shrinkage"):
        Compose((Merge(keep=0.5, per_head=True), Subsample(fill="shrink", shrinkage=(0.5, 0.5))))


def test_refuses_what_a_part_refuses():
    with pytest.raises(AccelError, match="leaves frame 0 alone"):
        Compose((MERGE, TemporalStride(4))).attend(*qkv(), LAYOUT)
    with pytest.raises(AccelError, match="at least 2 frames"):
        Compose().check(TokenLayout(1, 2, 4, 4))
