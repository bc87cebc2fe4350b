"""The law of classes against the law of one class and dense SVD of clustered directions."""

import numpy as np
import pytest

from meanfield.finite_n import PopulationLaw
from meanfield.mixtures import MixtureLaw, cluster_law
from meanfield.ranks import spectrum_ranks
from meanfield.sphere import sphere_spectrum
from tests import tolerances as tol
from tests.meanfield.dense import softmax

MEASURES = ("effective_rank", "effective_rank_energy", "stable_rank", "participation_ratio", "nuclear", "frobenius")


def one_class(kappa, dim):
    sigma, mult = sphere_spectrum(kappa, dim)
    return MixtureLaw(np.ones(1), np.ones(1), sigma[:, None, None], mult)


def random_law(rng):
    """Two query and three key classes, the constants and three modes."""
    kernels = np.concatenate([np.ones((1, 2, 3)), rng.random((3, 2, 3)) * [[[1.0]], [[0.3]], [[0.1]]]])
    return MixtureLaw(np.array([0.7, 0.3]), np.array([0.5, 0.3, 0.2]), kernels, np.array([1, 20, 60, 300]))


@pytest.mark.parametrize(("tokens", "kappa", "dim"), [(500, 3.0, 8), (300, 8.0, 64)])
def test_one_class_is_the_finite_n_law(tokens, kappa, dim):
    classes, plain = one_class(kappa, dim).ranks(tokens), PopulationLaw(*sphere_spectrum(kappa, dim)).ranks(tokens)
    for name in MEASURES:
        assert classes[name] == pytest.approx(float(plain[name]), rel=tol.MEANFIELD_ONE_CLASS)


def test_heavy_tail_of_one_class_is_that_of_the_finite_n_law():
    sigma, mult = sphere_spectrum(8.0, 32)
    classes = MixtureLaw(np.ones(1), np.ones(1), sigma[:, None, None], mult, (0.6, -0.3)).ranks(400)
    plain = PopulationLaw(sigma, mult, (0.6, -0.3)).ranks(400)
    for name in MEASURES:
        assert classes[name] == pytest.approx(float(plain[name]), rel=tol.MEANFIELD_ONE_CLASS)


def test_resolvent_of_one_class_solves_the_law():
    tokens, law = 300, one_class(3.0, 8)
    log_v, t = law.resolvent(tokens)
    resolved = t < 0.98 * tokens  # the iteration slows down where all singular values are counted
    log_v, t = log_v[resolved], t[resolved]
    w = np.exp(log_v) * (1.0 - t / tokens) ** 2
    x = w[:, None] * law.population()[0][1:] ** 2
    assert (x / (1.0 + x)) @ law.population()[1][1:] == pytest.approx(t, rel=tol.MEANFIELD_FIXED_POINT)


def test_splitting_a_class_changes_nothing():
    sigma, mult = sphere_spectrum(3.0, 8)
    split = MixtureLaw(
        np.array([0.6, 0.4]), np.array([0.2, 0.8]), np.broadcast_to(sigma[:, None, None], (sigma.size, 2, 2)), mult
    )
    whole = one_class(3.0, 8).ranks(400)
    for name, value in split.ranks(400).items():
        assert value == pytest.approx(whole[name], rel=tol.MEANFIELD_FIXED_POINT)


def test_leverages_solve_their_equations_for_several_classes():
    law, n, log_v = random_law(np.random.default_rng(0)), 50.0, 5.0
    log_a, log_b, total = law._fixed_point(log_v, n, np.zeros(2), np.zeros(3))
    a, b = np.exp(log_a), np.exp(log_b)
    used = 0.0
    for kernel, mult in zip(law.kernels[1:], law.multiplicity[1:], strict=True):
        w = np.sqrt(np.exp(log_v)) * np.sqrt(law.query_share * a)[:, None] * kernel * np.sqrt(law.key_share * b)
        used = used + mult * np.diag(w @ w.T @ np.linalg.inv(np.eye(2) + w @ w.T))
    assert n * law.query_share * (1.0 - a) == pytest.approx(used, rel=tol.MEANFIELD_FIXED_POINT)
    assert (n * law.key_share * (1.0 - b)).sum() == pytest.approx(total, rel=tol.MEANFIELD_FIXED_POINT)


def test_gaussian_features_in_classes_by_dense_svd():
    """The law's own model: independent normal features of many modes, mean of three draws."""
    rng, n = np.random.default_rng(3), 400
    law = random_law(rng)
    rows = np.repeat([0, 1], np.round(law.query_share * n).astype(int))
    columns = np.repeat([0, 1, 2], np.round(law.key_share * n).astype(int))
    measured = []
    for _ in range(3):
        matrix = np.full((n, n), 1.0 / n)
        for kernel, mult in zip(law.kernels[1:], law.multiplicity[1:], strict=True):
            x, y = rng.standard_normal((2, n, int(mult)))
            matrix = matrix + kernel[rows[:, None], columns] * (x @ y.T) / n
        measured.append(spectrum_ranks(np.linalg.svd(matrix, compute_uv=False)))
    predicted = law.ranks(n)
    for name in ("effective_rank", "effective_rank_energy"):
        mean = np.mean([ranks[name] for ranks in measured])
        assert predicted[name] == pytest.approx(mean, rel=tol.MEANFIELD_CLASSES_DRAW)


@pytest.mark.parametrize(("dim", "count", "spread", "kappa"), [(16, 4, 0.2, 6.0), (32, 4, 0.5, 6.0)])
def test_clusters_by_dense_svd(dim, count, spread, kappa):
    rng, n = np.random.default_rng(1), 400
    sides, shares = [], []
    for _ in range(2):
        label = rng.integers(count, size=n)
        u = rng.standard_normal((n, dim))
        u[np.arange(n), label] = 0.0  # centres are unit vectors of the axes
        u *= np.sqrt(spread) / np.linalg.norm(u, axis=1, keepdims=True)
        u[np.arange(n), label] = np.sqrt(1.0 - spread)
        sides.append(u)
        shares.append(np.bincount(label, minlength=count) / n)
    measured = spectrum_ranks(np.linalg.svd(softmax(kappa * sides[0] @ sides[1].T), compute_uv=False))
    law = cluster_law(kappa, dim, spread, np.eye(count), *shares).ranks(n)
    for name in ("effective_rank", "effective_rank_energy", "participation_ratio"):
        assert law[name] == pytest.approx(float(measured[name]), rel=tol.MEANFIELD_CLUSTERS)


def test_one_cluster_is_a_sphere_of_one_dimension_less():
    law = cluster_law(6.0, 9, 0.5, np.ones((1, 1)), np.ones(1), np.ones(1))
    sigma, mult = law.population()
    expected = sphere_spectrum(3.0, 8)
    assert sigma[:5] == pytest.approx(expected[0][:5], rel=tol.MEANFIELD_ROUNDING)
    assert PopulationLaw(sigma, mult).energy == pytest.approx(PopulationLaw(*expected).energy, rel=tol.MEANFIELD_EXACT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixtureLaw(np.array([0.5, 0.4]), np.ones(1), np.ones((1, 2, 1)), np.ones(1)), "0.9"),
        (lambda: MixtureLaw(np.ones(1), np.ones(1), np.ones((1, 2, 1)), np.ones(1)), "do not match"),
        (lambda: MixtureLaw(np.ones(1), np.ones(1), np.full((1, 1, 1), np.nan), np.ones(1)), "nan"),
        (lambda: MixtureLaw(np.ones(1), np.ones(1), np.ones((1, 1, 1)), np.zeros(1)), "multiplicity"),
        (lambda: one_class(3.0, 8).ranks(-5), "N=-5"),
        (lambda: one_class(3.0, 8).ranks(np.inf), "inf"),
        (lambda: cluster_law(3.0, 8, 1.0, np.ones((1, 1)), np.ones(1), np.ones(1)), "spread=1"),
        (lambda: cluster_law(np.inf, 8, 0.5, np.ones((1, 1)), np.ones(1), np.ones(1)), "inf"),
    ],
)
def test_outside_the_domain_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
