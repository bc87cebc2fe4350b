"""Weighted measures: moments against repeated tokens, merging, distances to a Dirac, masses of any size."""

import numpy as np
import pytest

from meanfield.measure import Measure, unit, w2_to_dirac, w2_to_dirac_on_sphere
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens


@pytest.fixture
def weighted():
    """A measure with whole masses, and the plain tokens that it stands for."""
    rng = np.random.default_rng(0)
    points, masses = rng.standard_normal((30, 5)) + 1.0, rng.integers(1, 5, 30)
    return Measure(points, np.log(masses)), np.repeat(points, masses, axis=0)


def test_moments_are_those_of_the_repeated_tokens(weighted):
    measure, tokens = weighted
    assert measure.total_mass == pytest.approx(len(tokens), rel=tol.MEANFIELD_ROUNDING)
    assert measure.mean == pytest.approx(tokens.mean(0), rel=tol.MEANFIELD_ROUNDING)
    assert measure.covariance == pytest.approx(np.cov(tokens.T, bias=True), rel=tol.MEANFIELD_ROUNDING)
    assert measure.variance == pytest.approx(tokens.var(0).sum(), rel=tol.MEANFIELD_ROUNDING)
    assert measure.second_moment == pytest.approx((tokens**2).sum(1).mean(), rel=tol.MEANFIELD_ROUNDING)
    assert sum(measure.energies) == pytest.approx(measure.second_moment, rel=tol.MEANFIELD_ROUNDING)
    assert Measure(tokens).spread() == pytest.approx(measure.spread(), rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
def test_masses_beyond_the_range_of_floats(weighted, shift):
    measure, _ = weighted
    moved = Measure(measure.points, measure.log_mass + shift)
    assert moved.mean == pytest.approx(measure.mean, rel=tol.MEANFIELD_ROUNDING)
    assert moved.variance == pytest.approx(measure.variance, rel=tol.MEANFIELD_ROUNDING)
    assert moved.log_total_mass == pytest.approx(measure.log_total_mass + shift, rel=tol.MEANFIELD_ROUNDING)
    merged = moved.merge(np.arange(30) // 4)
    assert merged.mean == pytest.approx(measure.mean, rel=tol.MEANFIELD_ROUNDING)
    assert merged.log_total_mass == pytest.approx(moved.log_total_mass, rel=tol.MEANFIELD_ROUNDING)


def test_directions_of_vectors_of_any_length():
    direction = [0.6, 0.8]
    for length in (1e-300, 1.0, 1e300):
        assert unit(length * np.array(direction)) == pytest.approx(direction, rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.filterwarnings("error")
def test_a_total_mass_beyond_floats_is_infinite(weighted):
    measure, _ = weighted
    huge = Measure(measure.points, measure.log_mass + 1e4)
    assert huge.total_mass == np.inf
    total = measure.total_mass
    assert huge.spread() == pytest.approx(measure.spread() * (total - 1.0) / total, rel=tol.MEANFIELD_ROUNDING)


def test_spread_is_one_minus_the_mean_cosine_of_pairs():
    x = np.random.default_rng(1).standard_normal((40, 6)) + 0.5
    theta = unit(x)
    pairs = (theta @ theta.T)[~np.eye(40, dtype=bool)]
    assert Measure(x).spread() == pytest.approx(1.0 - pairs.mean(), rel=tol.MEANFIELD_ROUNDING)


def test_spread_and_distance_keep_their_digits_near_collapse():
    """Two tokens at an angle 2 a: g = 1 - cos 2a = 2 sin^2 a and W2^2 = 2 (1 - cos a) = 4 sin^2(a/2)."""
    a = 1e-7
    measure = Measure([[np.cos(a), np.sin(a)], [np.cos(a), -np.sin(a)]])
    assert measure.spread() == pytest.approx(2.0 * np.sin(a) ** 2, rel=tol.MEANFIELD_NEAR_COLLAPSE)
    assert w2_to_dirac_on_sphere(measure) == pytest.approx(2.0 * np.sin(a / 2.0), rel=tol.MEANFIELD_NEAR_COLLAPSE)


def test_merging_conserves_mass_and_mean_and_loses_the_variance_within_groups(weighted):
    measure, tokens = weighted
    groups = np.random.default_rng(2).integers(-3, 4, 30)
    merged = measure.merge(groups)
    labels = np.repeat(groups, np.exp(measure.log_mass).round().astype(int))
    within = sum((labels == g).mean() * tokens[labels == g].var(0).sum() for g in np.unique(labels))
    assert len(merged) == len(np.unique(groups))
    assert merged.total_mass == pytest.approx(measure.total_mass, rel=tol.MEANFIELD_ROUNDING)
    assert merged.mean == pytest.approx(measure.mean, rel=tol.MEANFIELD_ROUNDING)
    assert merged.variance == pytest.approx(measure.variance - within, rel=tol.MEANFIELD_ROUNDING)
    first = tokens[labels == np.unique(groups)[0]]
    assert merged.points[0] == pytest.approx(first.mean(0), rel=tol.MEANFIELD_ROUNDING)
    assert merged.log_mass[0] == pytest.approx(np.log(len(first)), rel=tol.MEANFIELD_ROUNDING)


def test_the_union_adds_masses(weighted):
    measure, tokens = weighted
    other = Measure(np.full((2, 5), 3.0))
    both = measure.union(other)
    assert both.mean == pytest.approx(np.concatenate([tokens, other.points]).mean(0), rel=tol.MEANFIELD_ROUNDING)
    assert both.total_mass == pytest.approx(len(tokens) + 2.0, rel=tol.MEANFIELD_ROUNDING)
    assert other.union(other.points).log_mass is None


def test_distance_to_a_dirac(weighted):
    measure, tokens = weighted
    y = np.arange(5.0)
    direct = np.sqrt(((tokens - y) ** 2).sum(1).mean())
    assert w2_to_dirac(measure, y) == pytest.approx(direct, rel=tol.MEANFIELD_ROUNDING)
    assert w2_to_dirac(measure) == pytest.approx(w2_to_dirac(measure, measure.mean), rel=tol.MEANFIELD_ROUNDING)
    directions = measure.directions()
    best = w2_to_dirac_on_sphere(measure)
    assert best == pytest.approx(w2_to_dirac(directions, unit(directions.mean)), rel=tol.MEANFIELD_ROUNDING)
    for elsewhere in unit(np.random.default_rng(3).standard_normal((50, 5)) * 0.1 + directions.mean):
        assert best < w2_to_dirac(directions, elsewhere)


def test_equiangular_tokens_have_the_distance_of_2_1():
    tokens, spread = 40, 0.3
    measure = Measure(7.0 * equiangular_tokens(tokens, spread))
    expected = np.sqrt(2.0 * (1.0 - np.sqrt((1.0 + (tokens - 1) * (1.0 - spread)) / tokens)))
    assert w2_to_dirac_on_sphere(measure) == pytest.approx(expected, rel=tol.MEANFIELD_EXACT)
    assert measure.spread() == pytest.approx(spread, rel=tol.MEANFIELD_EXACT)


def test_a_measure_cannot_be_changed():
    points = np.ones((2, 2))
    measure = Measure(points)
    points[0] = 5.0
    assert np.all(measure.points == 1.0)
    with pytest.raises(ValueError, match="read-only"):
        measure.points[0] = 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Measure(np.zeros((0, 3))), r"\(0, 3\)"),
        (lambda: Measure(np.zeros(3)), r"\(3,\)"),
        (lambda: Measure([[np.nan, 1.0]]), "nan"),
        (lambda: Measure([[1e200, 1.0]]), r"points=1e\+200"),
        (lambda: unit(3.0), r"vectors have shape \(\)"),
        (lambda: Measure(np.ones((2, 2))).union(np.ones((2, 3))), "dim=3"),
        (lambda: Measure(np.ones((2, 2)), [0.0]), r"log_mass has shape \(1,\)"),
        (lambda: Measure(np.ones((2, 2)), [0.0, -np.inf]), "-inf"),
        (lambda: Measure([[0.0, 0.0]]).directions(), "no direction"),
        (lambda: Measure([[1.0, 0.0]]).spread(), "total mass=1"),
        (lambda: Measure(np.ones((2, 2))).merge([0]), r"shape \(1,\)"),
        (lambda: Measure(np.ones((2, 2))).merge([0.0, 1.0]), "integer labels"),
        (lambda: Measure(np.ones((2, 2))).union(Measure(np.ones((2, 3)))), "dim=3"),
        (lambda: w2_to_dirac(Measure(np.ones((2, 2))), [1.0]), r"point has shape \(1,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
