"""Every reduction twice: the prediction of `theory` against the same reduction carried out by `monte_carlo`."""

import inspect
from itertools import combinations

import numpy as np
import pytest

from meanfield import reductions as red
from meanfield.reductions import monte_carlo, theory
from tests import tolerances as tol
from tests.meanfield.dense import softmax

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
    assert {n for n in public if not n.startswith("_")} - {"grid_shape", "check_shared"} == set(NAMES)


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


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 40.0])
@pytest.mark.parametrize("kept", [1, 3, 9])
def test_subset_moment_is_the_sum_over_all_subsets(scale, kept):
    """Ten keys, also with logits so wide that some subsets hold 1e-40 of the mass; tiny, large and no fills."""
    rng = np.random.default_rng(3)
    weights, values = softmax(scale * rng.standard_normal(10)), rng.standard_normal((10, 3))
    moves = weights[:, None] * (values - weights @ values)
    for u, power, fill, offset in (
        (moves, 2, 0.0, 0.0),
        (values, 1, 1e-8, 0.3),
        (values, 2, 1e-8, 1),
        (values, 2, 1e9, 1),
    ):
        exact = np.mean(
            [
                ((offset + u[list(s)].sum(0)) * (offset + values[list(s)].sum(0))).sum()
                / (fill + weights[list(s)].sum()) ** power
                if u is values
                else (u[list(s)].sum(0) ** 2).sum() / weights[list(s)].sum() ** 2
                for s in combinations(range(10), kept)
            ]
        )
        right = values if u is values else u
        found = red.subset_moment(
            weights, u, right, kept, power=power, fill=fill, left_offset=offset, right_offset=offset
        )
        assert found == pytest.approx(exact, rel=tol.REDUCTION_QUADRATURE)


@pytest.mark.parametrize(("keys", "kept"), [(8, 1), (9, 4), (10, 9)])
@pytest.mark.parametrize("strength", [0.3, 1.0, 5.0])
def test_random_keys_are_exact_at_any_number(strength, keys, kept):
    """Also for one kept key and for peaked rows; squared errors are never negative."""
    found = sample(strength, keys=keys, queries=3)
    subsets = [list(s) for s in combinations(range(keys), kept)]
    outs = np.array([softmax(found.logits[:, s]) @ found.values[s] for s in subsets])
    means = np.array([found.values[s].mean(0) for s in subsets])[:, None]
    plain = ((outs - found.outputs) ** 2).sum(-1).mean(0)
    offset = found.mean_value - found.outputs
    weight = red.shrinkage_weight((offset**2).sum(1), plain)[:, None]
    mixed = weight * outs + (1.0 - weight) * found.mean_value - found.outputs
    exact = {
        "random_subset": plain,
        "control_variate": ((outs - means + offset) ** 2).sum(-1).mean(0),
        "shrinkage": (mixed**2).sum(-1).mean(0),
    }
    for name, value in exact.items():
        predicted = getattr(theory, name)(found, kept / keys).per_query
        assert np.all(np.abs(predicted - value) < tol.REDUCTION_QUADRATURE * plain), name


def test_control_variate_is_never_negative():
    rng = np.random.default_rng(3)
    found = red.AttentionSample(*(rng.standard_normal(shape) for shape in ((4, 3), (8, 3), (8, 1))))
    assert theory.control_variate(found, 0.125).per_query.min() >= 0.0


def test_mean_fill_of_few_dropped_keys():
    """One dropped key is its own mean; five of 200 are within the declared s^2/D."""
    found = sample(1.0, keys=200)
    assert theory.mean_fill(found, 199 / 200).mean == 0.0
    measured = monte_carlo.mean_fill(found, 0.975, rng=np.random.default_rng(0), repeats=4000)
    agrees(theory.mean_fill(found, 0.975), measured, tol.REDUCTION_FEW_DROPPED)


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


def test_frame_attention_of_one_frame_loses_nothing():
    found = sample(1.0, frames=np.zeros(KEYS, dtype=int), query_frames=np.zeros(QUERIES, dtype=int))
    assert theory.frame_attention(found).mean == 0.0
    assert monte_carlo.frame_attention(found).mean < tol.MEANFIELD_ROUNDING


@pytest.mark.parametrize("masses", [1000.0, -1e4, (0.0, -1e4), (0.0, 1000.0)])
@pytest.mark.parametrize("mass", [True, False])
def test_masses_far_from_one(masses, mass):
    """A common factor of the masses changes nothing; wide masses overflow nowhere."""
    base = sample(1.0, sizes=(4,) * 4, within=0.01)
    log_mass = np.broadcast_to(np.repeat(masses, 8) if np.ndim(masses) else masses, 16)
    found = red.AttentionSample(base.queries, base.keys, base.values, log_mass, base.groups)
    for twin in (theory, monte_carlo):
        error = twin.key_merge(found, mass=mass).mean
        assert np.isfinite(error)
        if not np.ndim(masses) and mass:
            assert error == pytest.approx(twin.key_merge(base).mean, rel=tol.MEANFIELD_EXACT)


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


THREE = (np.full(3, 1.0 / 3.0), np.ones((3, 1)), np.ones((3, 1)))


def constant_values():
    base = sample(1.0)
    return red.AttentionSample(base.queries, base.keys, np.full((KEYS, 2), 0.1))


def empty_frame():
    return sample(1.0, frames=np.zeros(KEYS, dtype=int), query_frames=np.arange(QUERIES) % 2)


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
        (lambda: theory.random_subset(sample(1.0), 1e-6), "keeps nothing"),
        (lambda: theory.random_subset(sample(1.0), [0.5]), "fraction has shape"),
        (lambda: monte_carlo.random_subset(sample(1.0), [0.5], rng=np.random.default_rng(0)), "fraction has shape"),
        (lambda: monte_carlo.random_subset(sample(1.0), 0.5, rng=0), "rng=0"),
        (lambda: monte_carlo.grid(sample(1.0), (1, 20, 20), 2, rng=0), "rng=0"),
        (lambda: theory.grid(sample(1.0), 16, 2), "shape=16"),
        (lambda: theory.grid(sample(1.0), (1, 4.5, 20), 2), r"shape=4\.5"),
        (lambda: theory.grid(sample(1.0), (1, 20, 20), 2.5), r"stride=2\.5"),
        (lambda: theory.common_mode(sample(1.0), 1.0), "makes no error"),
        (lambda: monte_carlo.common_mode(sample(1.0), 1.0, rng=np.random.default_rng(0)), "makes no error"),
        (lambda: theory.common_mode(constant_values(), 0.5), "makes no error"),
        (lambda: red.AttentionSample(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 1)), np.ones((2, 1))), "log_mass"),
        (lambda: red.AttentionSample(np.ones((2, 2)), np.ones((4, 2)), np.ones((4, 1)), 0.0), "log_mass has shape"),
        (lambda: monte_carlo.frame_attention(empty_frame()), "holds no key"),
        (lambda: theory.frame_attention(empty_frame()), "none of its attention mass"),
        (lambda: red.subset_moment(*THREE, 0, power=2), "kept=0"),
        (lambda: red.subset_moment(*THREE, 4, power=2), "kept=4"),
        (lambda: red.subset_moment(*THREE, 2, power=3), "power=3"),
        (lambda: red.subset_moment(*THREE, 2, power=2, fill=-1.0), "fill=-1"),
        (lambda: red.subset_moment(*THREE, np.nan, power=2), "nan"),
        (lambda: red.subset_moment(np.zeros(3), *THREE[1:], 2, power=2), "hold the mass"),
        (lambda: monte_carlo.random_subset(sample(1.0), 0.001, rng=np.random.default_rng(0)), "keeps nothing"),
        (lambda: monte_carlo.random_subset(sample(1.0), 0.5, rng=np.random.default_rng(0), repeats=1), "repeats=1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
