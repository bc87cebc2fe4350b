"""Displacements split over frames: their squares are those of `theory`, and they grow with the frames as said."""

from dataclasses import replace

import numpy as np
import pytest

from meanfield.reductions import AttentionSample, frame_error, theory
from meanfield.reductions import displacements as split
from tests.tolerances import EXACT_STATISTICS, SPLIT_FIRST_ORDER

FRAMES, H, W = 4, 4, 6


def make(seed=0, frames=FRAMES, spread=1.0, patches=H * W):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=shape) for shape in ((7, 5), (frames * patches, 5), (frames * patches, 3)))
    return AttentionSample(q * spread / 5**0.5, k, v + 0.3, frames=np.repeat(np.arange(frames), patches))


def no_fixed(sample):
    return np.zeros((len(sample.queries), sample.frames.max() + 1), dtype=bool)


def masses_of(stand_in):
    return np.stack([np.bincount(row, minlength=len(row)) for row in split.places(stand_in)])


@pytest.mark.parametrize("stride", [2])
@pytest.mark.parametrize(("pairs", "shared"), [("all", True), ("none", False)])
def test_thinning_on_a_grid_is_the_power_at_its_alias_frequencies(stride, pairs, shared):
    sample = make()
    index = np.arange(H * W).reshape(H, W)
    window = index[np.arange(H) // stride * stride][:, np.arange(W) // stride * stride].ravel()
    stand_in = np.concatenate([window + s * H * W for s in range(FRAMES)])
    found = split.thinning(sample, masses_of(stand_in))
    grown = split.growth(found, no_fixed(sample), pairs=pairs)
    expected = theory.grid(sample, (FRAMES, H, W), stride, shared=shared).per_query
    assert len(found.moves) == stride**2
    np.testing.assert_allclose(split.squared_error(grown, FRAMES).sum(0), expected, rtol=EXACT_STATISTICS)


def test_places_take_every_member_of_a_group_in_turn():
    found = split.places(np.array([4, 4, 4, 7, 7, 9]))
    assert found.tolist() == [[0, 0, 0, 3, 3, 5], [1, 1, 1, 4, 4, 5], [2, 2, 2, 3, 3, 5]]


@pytest.mark.parametrize("fill", [0.0, 1.0, 30.0])
def test_thinning_without_mass_is_about_the_mean_measure(fill):
    """The policy carried out with each draw, minus the mean measure: to first order in the kept mass."""
    sample = make(spread=0.05, patches=60)
    rng = np.random.default_rng(3)
    half = np.stack([rng.permutation(len(sample.keys)) % 2 for _ in range(20)]).astype(float)
    masses = np.concatenate([half, 1.0 - half])  # every key is kept in half of the draws
    found = split.thinning(sample, masses, fill=fill)
    raw = np.exp(sample.logits)
    mean = raw * masses.mean(0)
    key = fill * np.exp(sample.logits.mean(1))
    limit = (mean @ sample.values + key[:, None] * sample.mean_value) / (mean.sum(1) + key)[:, None]
    errors = []
    for row in masses:
        rest = sample.values[row == 0].mean(0)  # of the dropped keys; their mean logit is taken as that of all
        out = raw * row @ sample.values + key[:, None] * rest
        errors.append(((out / ((raw * row).sum(1) + key)[:, None] - limit) ** 2).sum(1))
    np.testing.assert_allclose(found.squares, np.mean(errors, 0), rtol=SPLIT_FIRST_ORDER)
    np.testing.assert_allclose(found.mass.sum(1), (mean.sum(1) + key) / raw.sum(1), rtol=EXACT_STATISTICS)


def test_the_bias_is_what_the_mean_measure_moves():
    sample, masses = make(), np.random.default_rng(0).uniform(0.5, 2.0, (1, FRAMES * H * W))
    found = split.thinning(sample, masses, bias=True)
    weights = np.exp(sample.logits) * masses
    out = weights @ sample.values / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(found.squares, ((out - sample.outputs) ** 2).sum(1), rtol=EXACT_STATISTICS)
    assert split.thinning(sample, masses).squares == pytest.approx(0, abs=EXACT_STATISTICS)


def test_the_own_key_of_a_query_is_known():
    sample = make(patches=2, frames=2)
    stand_in = np.array([0, 0, 2, 2])
    everything = split.thinning(sample, masses_of(stand_in), np.zeros(7, dtype=int))
    a = sample.weights
    moves = a[:, [1]] * (sample.values[1] - sample.outputs), a[:, [2]] * (sample.values[2] - sample.outputs)
    third = a[:, [3]] * (sample.values[3] - sample.outputs)
    expected = [((-moves[0] + moves[1] - third) ** 2).sum(1), ((moves[0] - moves[1] + third) ** 2).sum(1)]
    np.testing.assert_allclose(everything.squares, np.mean(expected, 0), rtol=EXACT_STATISTICS)


@pytest.mark.parametrize("mass", [True, False])
def test_merged_keys_are_those_of_theory(mass):
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 30, FRAMES * H * W) if mass else np.arange(FRAMES * H * W) // 3  # equal masses: no loss
    sample = replace(make(1, spread=0.5), groups=groups)
    found = split.key_merge(sample, mass=mass)
    expected = theory.key_merge(sample).per_query
    np.testing.assert_allclose(found.squares, expected, rtol=EXACT_STATISTICS)
    np.testing.assert_allclose(found.mass.sum(1), 1.0 if mass else 1 / 3, rtol=EXACT_STATISTICS)


def test_lost_masses_are_counted_exactly():
    """Groups of equal keys: the measure of group means is exact, and without mass only the masses are wrong."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(12), np.arange(1, 13))
    keys, values = rng.normal(size=(12, 5))[groups], rng.normal(size=(12, 3))[groups]
    sample = AttentionSample(rng.normal(size=(7, 5)), keys, values, groups=groups, frames=np.arange(78) // 20)
    lost = np.exp(sample.logits) / np.bincount(groups)[groups]
    out = lost @ values / lost.sum(1, keepdims=True)
    expected = ((out - sample.outputs) ** 2).sum(1)
    np.testing.assert_allclose(split.key_merge(sample, mass=False).squares, expected, rtol=EXACT_STATISTICS)
    assert (expected > 0.01).any()


def test_some_groups_merged():
    """A query that merges nothing, and one that merges all; the cumulant takes the second moment away."""
    sample = replace(make(1, spread=0.5), groups=np.arange(FRAMES * H * W) // 4)
    every = np.ones((7, 24), dtype=bool)
    every[:3] = False
    found = split.key_merge(sample, merged=every).squares
    np.testing.assert_allclose(found[3:], split.key_merge(sample).squares[3:], rtol=EXACT_STATISTICS)
    assert found[:3] == pytest.approx(0, abs=EXACT_STATISTICS)
    flat = replace(sample, values=np.repeat(sample.values[::4], 4, 0))  # no covariance of values in a group
    member = split._means(sample.groups)[0]
    half = 0.5 * ((member @ (flat.logits**2).T).T - (flat.logits @ member.T.toarray()) ** 2)
    plain, better = (split.key_merge(flat, merged=every | True, cumulant=c).squares for c in (0.0, half))
    assert (better < 1e-20).all() and (plain > 1e-9).all()


def test_merged_queries_are_those_of_theory():
    sample = replace(make(2, spread=0.3), query_groups=np.array([0, 0, 1, 1, 1, 2, 2]))
    member = (np.arange(3)[:, None] == sample.query_groups).astype(float)
    shared = member.T @ (member @ sample.queries / member.sum(1)[:, None])
    found = split.query_merge(sample, shared)
    np.testing.assert_allclose(found.squares, theory.query_merge(sample).per_query, rtol=EXACT_STATISTICS)
    both = split.query_merge(sample, shared) + found
    np.testing.assert_allclose(both.squares, 4 * found.squares, rtol=EXACT_STATISTICS)


def test_kept_blocks_are_an_identity_of_the_pooled_measure():
    groups = np.arange(FRAMES * H * W) // 4
    sample = make(3)
    sample = replace(sample, keys=sample.keys[groups * 4], values=sample.values[groups * 4], groups=groups)
    kept = np.random.default_rng(0).random((7, 24)) < 0.4
    found = split.kept_blocks(sample, kept)
    a = sample.weights * kept[:, groups]
    rho = a.sum(1)
    inside = a @ sample.values / rho[:, None]
    rest = (sample.outputs - rho[:, None] * inside) / (1 - rho)[:, None]
    expected = frame_error(rho, ((rest - inside) ** 2).sum(1))
    np.testing.assert_allclose(found.squares, expected, rtol=EXACT_STATISTICS)
    np.testing.assert_allclose(found.mass.sum(1), rho, rtol=EXACT_STATISTICS)


FIXED = np.array([[True, True, False, False, False, False], [True, False, False, False, False, False]])


@pytest.mark.parametrize("pairs", ["all", "near", "none"])
def test_growth_equals_the_squares_on_the_frames_given(pairs):
    moves = np.random.default_rng(0).normal(size=(3, 2, 6, 4))
    found = split.Displacement(moves, np.random.default_rng(1).uniform(size=(2, 6)))
    grown = split.growth(found, FIXED, pairs=pairs)
    expected = found.squares if pairs != "none" else (moves**2).sum((2, 3)).mean(0) / found.mass.sum(1) ** 2
    np.testing.assert_allclose(split.squared_error(grown, np.array([4, 5])).sum(0), expected, rtol=EXACT_STATISTICS)


def test_growth_tells_the_mean_of_the_frames_from_their_scatter():
    """Coherent moves keep their size, incoherent ones fall like 1/S, what is fixed like 1/S^2 (in squares)."""
    rng = np.random.default_rng(0)
    one, fixed = rng.normal(size=(1, 2, 1, 4)), np.zeros((2, 6), dtype=bool)
    mass = np.full((2, 6), 1 / 6)
    coherent = split.growth(split.Displacement(np.repeat(one, 6, 2), mass), fixed)
    independent = split.growth(split.Displacement(np.repeat(one, 6, 2), mass), fixed, pairs="none")
    for found, power in ((coherent, 0), (independent, 1)):
        few, many = (split.squared_error(found, n).sum(0) for n in (6, 600))
        np.testing.assert_allclose(many * 100**power, few, rtol=EXACT_STATISTICS)
    near = split.growth(split.Displacement(np.repeat(one, 6, 2), mass), fixed, pairs="near")
    few, many = (split.squared_error(near, n).sum(0) for n in (6, 600))
    np.testing.assert_allclose(many * 100, few, rtol=EXACT_STATISTICS)
    fixed[:, 0] = True
    start = split.growth(split.Displacement(one * np.eye(6)[0][:, None], mass), fixed)
    few, many = (split.squared_error(start, n).sum(0) for n in (5, 599))
    np.testing.assert_allclose(many * 100**2, few, rtol=EXACT_STATISTICS)


def test_growth_is_unbiased_from_few_frames():
    """Frames drawn from a population: coefficients from 3 of them, averaged, give the mean square of 12."""
    rng = np.random.default_rng(0)
    mean, start = rng.normal(size=(2, 2))
    moves = mean + rng.normal(size=(40000, 13, 2))
    moves[:, 0] = start
    fixed = np.eye(1, 13, dtype=bool).repeat(len(moves), 0)
    few = split.Displacement(moves[None, :, :4], np.full((len(moves), 4), 1 / 4))
    many = split.Displacement(moves[None], np.full((len(moves), 13), 1 / 4))
    predicted = split.squared_error(split.growth(few, fixed[:, :4]), 12).sum(0).mean()
    assert predicted == pytest.approx(many.squares.mean(), rel=0.02)


def test_a_measure_that_is_only_scaled_moves_nothing_in_any_frame():
    """Else what cancels over the frames given would not at other numbers of them."""
    sample = replace(make(), groups=np.arange(FRAMES * H * W) // 4)
    even = replace(sample, keys=np.repeat(sample.keys[::4], 4, 0), values=np.repeat(sample.values[::4], 4, 0))
    for found in (
        split.thinning(sample, np.full((1, FRAMES * H * W), 0.5), bias=True),
        split.key_merge(even, mass=False),
        split.kept_blocks(sample, np.ones((7, 24), dtype=bool)),
    ):
        assert np.abs(found.moves).max() < EXACT_STATISTICS
