"""Every reduction twice: the prediction of `theory` against the same reduction carried out by `monte_carlo`."""

import inspect

import numpy as np
import pytest

from meanfield import reductions as red
from meanfield.reductions import monte_carlo, theory
from tests import tolerances as tol

KEYS, DIM, QUERIES = 400, 8, 12
NAMES = (
    "random_subset",
    "random_subset_first_order",
    "common_mode",
    "control_variate",
    "mean_fill",
    "shrinkage",
    "sparsity_top",
    "sparsity_blocks",
    "key_merge",
    "query_merge",
    "frame_attention",
    "grid",
)


def sample(strength, *, keys=KEYS, queries=QUERIES, sizes=(), within=0.02, seed=0, **labels):
    """Gaussian keys (in groups of the given sizes, sharing all but `within` of their variance), random queries."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes) if sizes else np.arange(keys)
    centre = rng.standard_normal((groups.max() + 1, DIM))[groups]
    k = np.sqrt(1.0 - within) * centre + np.sqrt(within) * rng.standard_normal((len(groups), DIM))
    noise = rng.standard_normal((groups.max() + 1, DIM))[groups]
    q = rng.standard_normal((queries, DIM))
    q *= strength / np.linalg.norm(q, axis=1, keepdims=True)
    return red.AttentionSample(q, k, 0.7 * k + 0.7 * noise, groups=groups, **labels)


def agrees(predicted, measured, relative):
    assert abs(predicted.mean - measured.mean) < 4.0 * measured.mean_se + relative * measured.mean


@pytest.mark.parametrize("name", NAMES)
def test_twins_have_the_same_arguments(name):
    """The twin takes the same arguments in the same order; what is random about it is keyword-only."""
    expected = list(inspect.signature(getattr(theory, name)).parameters)
    found = [p for p in inspect.signature(getattr(monte_carlo, name)).parameters if p not in ("rng", "repeats")]
    assert found == expected
    public = {n for n, f in inspect.getmembers(theory, inspect.isfunction) if f.__module__ == theory.__name__}
    assert {n for n in public if not n.startswith("_")} - {"grid_shape"} == set(NAMES)


@pytest.mark.parametrize(("strength", "fraction"), [(0.5, 0.25), (1.0, 0.25), (2.5, 0.125)])
@pytest.mark.parametrize("name", ["random_subset", "control_variate", "shrinkage", "mean_fill"])
def test_random_keys(name, strength, fraction):
    """Also at s = 2.5, where f N_eff is about 1 and the first order is 2.5 times too large."""
    found = sample(strength)
    measured = getattr(monte_carlo, name)(found, fraction, rng=np.random.default_rng(1), repeats=1000)
    agrees(getattr(theory, name)(found, fraction), measured, tol.REDUCTION_FIXED_NUMBER)


def test_fill_of_weight_one():
    found = sample(1.0)
    measured = monte_carlo.mean_fill(found, 0.25, count_weight=False, rng=np.random.default_rng(1), repeats=500)
    agrees(theory.mean_fill(found, 0.25, count_weight=False), measured, tol.REDUCTION_FIXED_NUMBER)


def test_first_order_is_the_limit_and_fails_below():
    flat, sharp = sample(0.3), sample(2.5)
    assert theory.random_subset_first_order(flat, 0.5).mean == pytest.approx(
        theory.random_subset(flat, 0.5).mean, rel=tol.REDUCTION_NEXT_ORDER
    )
    assert theory.random_subset_first_order(sharp, 0.05).mean > 2.0 * theory.random_subset(sharp, 0.05).mean


def test_thinned_moment_is_the_sum_over_all_subsets():
    """Nine keys, 512 subsets, with a fill and offsets: exact up to the quadrature."""
    rng = np.random.default_rng(3)
    count, f, fill = 9, 0.4, 0.2
    weights = rng.dirichlet(np.ones(count))
    u, w, a, b = (rng.standard_normal(shape) for shape in ((count, 2), (count, 2), 2, 2))
    for power in (1, 2):
        exact = 0.0
        for code in range(2**count):
            kept = np.array([code >> j & 1 for j in range(count)], dtype=bool)
            chance = f ** kept.sum() * (1 - f) ** (~kept).sum()
            exact += chance * (a + u[kept].sum(0)) @ (b + w[kept].sum(0)) / (fill + weights[kept].sum()) ** power
        found = red.thinned_moment(weights, u, w, f, power=power, fill=fill, left_offset=a, right_offset=b)
        assert found == pytest.approx(exact, rel=tol.REDUCTION_QUADRATURE)


def test_common_mode():
    """Queries share the fraction e^{-s^2} of the error (plus 1/n of the rest)."""
    found = sample(1.0, keys=1000, queries=200)
    predicted = theory.common_mode(found, 0.25)
    measured = monte_carlo.common_mode(found, 0.25, rng=np.random.default_rng(0), repeats=200)
    assert measured == pytest.approx(predicted, rel=tol.REDUCTION_COMMON_MODE)
    assert red.common_mode_share(1.0) == pytest.approx(predicted, rel=tol.REDUCTION_COMMON_MODE)


@pytest.mark.parametrize(("strength", "fraction"), [(0.3, 0.25), (1.0, 0.0625), (2.0, 0.25)])
def test_largest_logits(strength, fraction):
    found = sample(strength, keys=2000, queries=48)
    agrees(theory.sparsity_top(found, fraction), monte_carlo.sparsity_top(found, fraction), tol.REDUCTION_GAUSSIAN)


def test_largest_blocks():
    found = sample(1.0, sizes=(16,) * 125, within=0.5, queries=48)
    agrees(theory.sparsity_blocks(found, 0.25), monte_carlo.sparsity_blocks(found, 0.25), tol.REDUCTION_BLOCKS)


def test_merge_has_the_declared_order():
    """The error is of second order in the logits' spread within groups, the prediction misses the next order."""
    misses = []
    for within in (0.01, 0.0025):
        found = sample(1.0, sizes=(4,) * 100, within=within)
        measured = monte_carlo.key_merge(found)
        agrees(theory.key_merge(found), measured, tol.REDUCTION_MERGE)
        misses.append(measured.mean)
    assert misses[0] / misses[1] == pytest.approx(16.0, rel=tol.REDUCTION_ORDER)


def test_merge_without_mass_of_unequal_groups():
    sizes = tuple(np.random.default_rng(0).integers(8, 12, size=60))
    found = sample(0.5, sizes=sizes)
    agrees(theory.key_merge(found, mass=False), monte_carlo.key_merge(found, mass=False), tol.REDUCTION_MERGE)
    assert monte_carlo.key_merge(found, mass=False).mean > 3.0 * monte_carlo.key_merge(found).mean


def test_merging_copies_with_mass_loses_nothing():
    found = sample(1.0, sizes=(1, 2, 5, 9), within=0.0)
    assert monte_carlo.key_merge(found).mean < tol.MEANFIELD_ROUNDING
    assert theory.key_merge(found).mean < tol.MEANFIELD_ROUNDING


def test_merged_queries():
    base = sample(1.0)
    rng = np.random.default_rng(5)
    queries = np.repeat(base.queries, 4, axis=0)
    queries = queries + 0.02 * rng.standard_normal(queries.shape)
    found = red.AttentionSample(queries, base.keys, base.values, query_groups=np.repeat(np.arange(QUERIES), 4))
    agrees(theory.query_merge(found), monte_carlo.query_merge(found), tol.REDUCTION_QUERY)


def test_frame_attention_is_an_identity():
    found = sample(1.5, frames=np.arange(KEYS) % 4, query_frames=np.arange(QUERIES) % 4)
    exact = monte_carlo.frame_attention(found)
    assert theory.frame_attention(found).per_query == pytest.approx(exact.per_query, rel=tol.MEANFIELD_EXACT)


@pytest.mark.parametrize("shared", [True, False])
def test_grid(shared):
    """Frames with the same smooth values and weak logits: aliased power, coherent over frames or not."""
    rng = np.random.default_rng(2)
    shape = (4, 8, 8)
    pattern = rng.standard_normal((64, 3))
    values = np.tile(pattern, (4, 1)) + 0.5 * rng.standard_normal((256, 3))
    found = red.AttentionSample(0.1 * rng.standard_normal((6, 4)), rng.standard_normal((256, 4)), values)
    measured = monte_carlo.grid(found, shape, 2, shared=shared, rng=rng, repeats=2000)
    agrees(theory.grid(found, shape, 2, shared=shared), measured, tol.REDUCTION_NEXT_ORDER)


def test_a_grid_shared_by_frames_does_not_average_out():
    """S frames with the same content: the error of one shared grid stays, that of separate offsets falls as 1/S."""
    rng = np.random.default_rng(2)
    pattern, query = rng.standard_normal((64, 3)), np.zeros((1, 2))
    errors = {}
    for frames in (1, 4):
        found = red.AttentionSample(query, np.zeros((64 * frames, 2)), np.tile(pattern, (frames, 1)))
        errors[frames] = [theory.grid(found, (frames, 8, 8), 2, shared=shared).mean for shared in (True, False)]
    assert errors[4][0] == pytest.approx(errors[1][0], rel=tol.MEANFIELD_ROUNDING)
    assert errors[4][1] == pytest.approx(errors[1][1] / 4, rel=tol.MEANFIELD_ROUNDING)


def test_statistics_of_gaussian_logits():
    """s, N_eff = N e^{-s^2}, phi = e^{-s^2/2} and the slope .49 of the construction."""
    found = red.statistics(sample(1.0, keys=2000, queries=40)).mean("query")
    assert found["logit_std"] == pytest.approx(1.0, rel=tol.REDUCTION_STATISTIC)
    assert found["effective_keys"] == pytest.approx(2000 * np.exp(-1.0), rel=tol.REDUCTION_STATISTIC)
    assert found["mean_ratio"] == pytest.approx(np.exp(-0.5), rel=tol.REDUCTION_STATISTIC)
    assert found["slope"] == pytest.approx(0.49, rel=tol.REDUCTION_STATISTIC)


def test_keeping_everything_loses_nothing():
    found = sample(1.0)
    for name in ("random_subset", "control_variate", "mean_fill", "shrinkage", "sparsity_top"):
        assert abs(getattr(theory, name)(found, 1.0).mean) < tol.MEANFIELD_ROUNDING, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: red.AttentionSample(np.ones((2, 3)), np.ones((4, 2)), np.ones((4, 1))), "queries have 3 channels"),
        (lambda: red.AttentionSample(np.ones((2, 2)), np.ones((4, 2)), np.ones((5, 1))), "values has 5 entries"),
        (lambda: red.AttentionSample(np.ones((2, 2)), np.ones((1, 2)), np.ones((1, 1))), "at least two keys"),
        (lambda: red.AttentionSample(np.ones((2, 2)), np.full((4, 2), np.nan), np.ones((4, 1))), "keys contains nan"),
        (lambda: red.AttentionSample(np.ones((2, 2)), np.ones((4, 2)), np.ones((4, 1)), groups=np.ones(4)), "integer"),
        (lambda: theory.frame_attention(sample(1.0)), "query_frames=None"),
        (lambda: theory.query_merge(sample(1.0)), "query_groups=None"),
        (lambda: theory.grid(sample(1.0), (1, 20, 20), 3), "stride=3"),
        (lambda: theory.grid(sample(1.0), (2, 20, 20), 2), "holds 800 keys"),
        (lambda: theory.random_subset(sample(1.0), 0.0), "fraction=0"),
        (lambda: monte_carlo.random_subset(sample(1.0), 0.001, rng=np.random.default_rng(0)), "keeps nothing"),
        (lambda: monte_carlo.random_subset(sample(1.0), 0.5, rng=np.random.default_rng(0), repeats=1), "repeats=1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
