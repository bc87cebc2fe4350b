"""Partition, matching, averages and copies, and the first-order way back."""

import pytest
import torch

from accel.attend import attend_naive
from accel.layout import TokenLayout
from accel.policies import base
from accel.policies.matching import Groups, Matching, probes, restore, spread
from tests import tolerances
from tests.accel.policies.inputs import BIG, LAYOUT, B, D, H, error, normal, qkv

GRIDS = [TokenLayout(3, 5, 28, 37), TokenLayout(3, 2, 5, 7), TokenLayout(2, 0, 4, 4)]


@pytest.mark.parametrize("cell", [(2, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("layout", GRIDS, ids=lambda x: f"{x.grid_h}x{x.grid_w}")
def test_one_destination_per_cell_of_any_grid(layout, cell):
    chosen = Matching(0.5, cell=cell).destinations(layout)
    assert chosen[layout.special_index()].all() and chosen[: layout.tokens_per_frame].all()
    for frame in chosen[layout.grid()][1:]:
        for rows in frame.split(cell[0], 0):
            assert all(int(part.sum()) == 1 for part in rows.split(cell[1], 1))


def test_destinations_vary_with_seed_and_frame_only():
    layout = GRIDS[0]
    first = Matching(0.5, cell=(2, 2)).destinations(layout)
    assert torch.equal(first, Matching(0.1, cell=(2, 2), channels=3).destinations(layout))
    assert not torch.equal(first, Matching(0.5, cell=(2, 2), seed=1).destinations(layout))
    places = first[layout.grid()]
    assert not torch.equal(places[1], places[2])
    for i in range(2):  # every place of a cell is drawn: about 1 in 4
        for j in range(2):
            assert 0.15 < places[1:, i::2, j:36:2].double().mean() < 0.35


def test_the_finest_cells_that_fit_are_chosen():
    layout = TokenLayout(20, 4, 12, 12)
    sizes = [int(Matching(keep).destinations(layout).sum()) for keep in (0.9, 0.32, 0.25, 0.2, 0.15)]
    cells = [36, 36, 24, 16, 9]  # 2x2, 2x2, 2x3, 3x3, and 4x4, since 3x4 needs 452 > 444
    assert sizes == [148 + 19 * (4 + n) for n in cells]
    assert all(size <= keep * layout.tokens for size, keep in zip(sizes, (0.9, 0.32, 0.25, 0.2, 0.15), strict=True))
    assert int(Matching(0.01).destinations(layout).sum()) == 148 + 19 * 5


@pytest.mark.parametrize("per_head", [False, True])
def test_rows_as_declared(per_head):
    x = normal(5, B, H if per_head else 1, LAYOUT.tokens, D)
    for keep, protect in ((0.5, 0.0), (0.7, 0.1), (0.01, 0.2)):
        matching = Matching(keep, cell=(2, 2), protect=protect, per_head=per_head)
        groups = matching.groups([x], LAYOUT)
        M = matching.rows(LAYOUT)
        kept = matching.kept(LAYOUT)
        assert M == max(round(keep * LAYOUT.tokens), int(kept.sum()))
        assert groups.representative.shape == groups.mass.shape == (*x.shape[:2], M)
        assert (groups.representative.diff(dim=-1) > 0).all() and (groups.mass >= 1).all()
        assert (groups.mass.sum(-1) == LAYOUT.tokens).all()
        own = groups.row.gather(-1, groups.representative)
        assert torch.equal(own, torch.arange(M).expand_as(own))
        for representative in groups.representative.flatten(0, 1):
            assert torch.isin(kept.nonzero()[:, 0], representative).all()


def test_merged_tokens_join_their_nearest_destination_and_the_worst_matched_stay():
    x = normal(6, 1, 1, LAYOUT.tokens, D)
    matching = Matching(0.6, cell=(2, 2))
    groups = matching.groups([x], LAYOUT)
    kept, unit = matching.kept(LAYOUT), x[0, 0] / x[0, 0].norm(dim=-1, keepdim=True)
    best, joins = (unit @ unit[kept].T).max(-1)
    merged = torch.ones_like(kept)
    merged[groups.representative[0, 0]] = False
    stayed = ~merged & ~kept
    assert merged.any() and stayed.any() and best[merged].min() >= best[stayed].max()
    found = groups.representative[0, 0, groups.row[0, 0]]
    assert torch.equal(found[merged], kept.nonzero()[:, 0][joins][merged])


def test_a_window_bounds_the_matches():
    x = normal(7, 1, 1, LAYOUT.tokens, D)
    frame = LAYOUT.frame_of()
    for first_frame in (True, False):
        matching = Matching(0.4, cell=(2, 2), window=2, first_frame=first_frame)
        groups = matching.groups([x], LAYOUT)
        to = frame[groups.representative[0, 0, groups.row[0, 0]]]
        near = to // 2 == frame // 2
        assert (near | (to == 0)).all() if first_frame else near.all()
        assert (to[frame >= 2] == 0).any() == first_frame


def test_merge_is_the_mean_and_unmerge_the_copy():
    row = torch.tensor([0, 1, 0, 2, 1, 0])
    shared = Groups(row.expand(1, 1, 6), torch.tensor([0, 1, 3]).expand(1, 1, 3), torch.tensor([[[3, 2, 1]]]))
    for groups in (
        shared,
        Groups(row.expand(B, H, 6), *(x.expand(B, H, 3) for x in (shared.representative, shared.mass))),
    ):
        x = normal(8, B, H, 6, D)
        means = groups.merge(x)
        want = torch.stack([x[:, :, row == g].mean(2) for g in range(3)], 2)
        torch.testing.assert_close(means, want, **tolerances.ROUNDING_F64)
        assert torch.equal(groups.unmerge(means), means[:, :, row])
        torch.testing.assert_close(groups.merge(groups.unmerge(means)), means, **tolerances.ROUNDING_F64)
        assert torch.equal(groups.unmerge(means, slice(2, 4)), means[:, :, row[2:4]])
        big = groups.merge(torch.full((B, H, 6, D), 300.0, dtype=torch.bfloat16))
        assert big.dtype == torch.bfloat16 and (big == 300).all()


def test_principal_channels_match_as_the_whole_metric_does_when_it_has_their_rank():
    x = normal(9, 1, 1, LAYOUT.tokens, 6) @ normal(10, 6, 40)
    whole, few = (Matching(0.5, channels=c).groups([x[..., :25], x[..., 25:]], LAYOUT) for c in (None, 6))
    assert torch.equal(whole.row, few.row)
    assert not torch.equal(whole.row, Matching(0.5, channels=2).groups([x], LAYOUT).row)


@pytest.mark.parametrize("window", [None, 3])
def test_blocks_of_similarities_change_nothing(window, monkeypatch):
    x = normal(11, B, H, LAYOUT.tokens, D)
    matching = Matching(0.5, window=window, per_head=True, channels=8)
    want = matching.groups([x], LAYOUT)
    monkeypatch.setattr(base, "BLOCK_ELEMENTS", 5 * B * H * 40)
    assert torch.equal(want.row, matching.groups([x], LAYOUT).row)


def test_pairs_are_what_is_compared():
    for layout in (LAYOUT, TokenLayout(7, 5, 9, 11)):
        for matching in (
            Matching(0.5),
            Matching(0.1, cell=(2, 3), protect=0.1),
            Matching(0.5, window=2),
            Matching(0.3, window=3, first_frame=False),
        ):
            blocks = matching._blocks(layout, matching.destinations(layout), 1)
            assert matching._pairs(layout) == sum(len(a) * len(b) for a, b in blocks)


def test_a_window_finds_its_sources_and_candidates():
    layout = TokenLayout(5, 2, 4, 5)
    for first_frame in (True, False):
        matching = Matching(0.4, cell=(2, 2), window=2, first_frame=first_frame)
        chosen, window = matching.destinations(layout), layout.frame_of() // 2
        blocks = list(matching._blocks(layout, chosen, 1))
        assert len(blocks) == 3
        for i, (sources, candidates) in enumerate(blocks):
            near = (window == i) | (first_frame & (layout.frame_of() == 0))
            assert torch.equal(sources, ((window == i) & ~chosen).nonzero()[:, 0])
            assert torch.equal(candidates.unique(), (near & chosen).nonzero()[:, 0])


def test_protected_tokens_are_spread_over_the_sequence():
    layout = TokenLayout(20, 0, 5, 5)
    for share in (0.1, 0.3, 0.6, 0.9):
        kept = Matching(0.1, cell=(5, 5), first_frame=False, protect=share)._with_protected(
            torch.zeros(layout.tokens, dtype=torch.bool)
        )
        assert int(kept.sum()) == round(share * layout.tokens)
        assert kept.nonzero()[:, 0].diff().max() <= int(1 / share) + 1 and int(kept.nonzero()[-1, 0]) > 480


@pytest.mark.parametrize("per_head", [False, True])
def test_a_token_without_a_similarity_has_a_row_of_its_own(per_head):
    """NaN is sorted last, as the destinations are: it must not take their place."""
    x = normal(12, 1, 1, LAYOUT.tokens, D)
    x[:, :, 40] = torch.nan
    matching = Matching(0.6, cell=(2, 2), per_head=per_head)
    groups = matching.groups([x], LAYOUT)
    assert groups.row.min() == 0 and not matching.kept(LAYOUT)[40]
    assert torch.isin(matching.kept(LAYOUT).nonzero()[:, 0], groups.representative[0, 0]).all()
    assert 40 in groups.representative


def test_restore_follows_an_affine_output_and_copies_where_the_slope_says_nothing():
    """Small logits make the output affine in q. The ridge leaves some of the difference; the step cannot exceed 1."""
    q, k, v = qkv(BIG)
    groups = Matching(0.5).groups([q[:, :1]], BIG)
    q_rows, small = groups.merge(q), 0.05

    def exact(some):
        return attend_naive(some, k, v, scale=small)[0]

    want = exact(q)
    first_order = restore(groups, q, q_rows, exact(q_rows), exact)
    copied = groups.unmerge(exact(q_rows))
    assert error(first_order, want) < tolerances.FIRST_ORDER * error(copied, want)

    def against(some):  # rows say slope 1, the probes say that members do not move
        return q_rows if some.shape[2] == q_rows.shape[2] else groups.unmerge(q_rows, spread(BIG.tokens, 18))

    assert probes(q_rows.shape[2]) == 18
    assert torch.equal(restore(groups, q, q_rows, q_rows, against), groups.unmerge(q_rows))


def test_spread_is_even():
    for tokens, number in ((1000, 100), (88, 3), (5, 9)):
        index = spread(tokens, number)
        assert len(index) == min(tokens, number) and (index.diff() > 0).all() and 0 <= index[0] <= index[-1] < tokens
