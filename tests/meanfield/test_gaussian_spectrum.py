"""Gaussian queries and keys at N tokens against dense SVD and against the limits the shells must have."""

import numpy as np
import pytest
from scipy.special import binom

from meanfield import gaussian_spectrum as gs
from meanfield.closed_forms import gaussian_qk_ranks
from meanfield.finite_n import PopulationLaw
from meanfield.ranks import effective_rank
from tests import tolerances as tol
from tests.meanfield.dense import softmax


def measured_rank(seed, tokens, c):
    rng = np.random.default_rng(seed)
    z, y = np.sqrt(c) * rng.standard_normal((tokens, c.size)), rng.standard_normal((tokens, c.size))
    return float(effective_rank(np.linalg.svd(softmax(z @ y.T), compute_uv=False)))


@pytest.mark.parametrize(("tokens", "dim", "variance"), [(500, 8, 3.1), (200, 32, 1.9)])
def test_effective_rank_by_dense_svd(tokens, dim, variance):
    c = np.full(dim, variance / dim)
    law = gs.gaussian_ranks(tokens, c)["effective_rank"]
    assert law == pytest.approx(measured_rank(0, tokens, c), rel=tol.MEANFIELD_SHELLS)


def test_unequal_covariance_by_dense_svd():
    c = 0.8 ** np.arange(16)
    c /= c.sum()
    law = gs.gaussian_ranks(500, c)["effective_rank"]
    assert law == pytest.approx(measured_rank(0, 500, c), rel=tol.MEANFIELD_SHELLS)


def test_independent_features_are_far_too_high():
    """What the shells are for: at D = 8 the plain law is twice the measured effective rank."""
    c = np.full(8, 0.1165)
    plain = PopulationLaw(*gs.geometric_population(c)).ranks(500)["effective_rank"]
    assert plain > 1.5 * measured_rank(0, 500, c)


@pytest.mark.parametrize("dim", [2.0, 3.0, 5.0])
def test_multiplicities_count_harmonics(dim):
    """All polynomials of degree k on the sphere: binom(k + D - 1, D - 1) less those of degree k - 2."""
    k = np.arange(6)
    polynomials = binom(k + dim - 1.0, dim - 1.0)
    expected = polynomials - np.where(k > 1, binom(k + dim - 3.0, dim - 1.0), 0.0)
    assert gs._multiplicity(dim)[:6] == pytest.approx(expected, rel=tol.MEANFIELD_ROUNDING)


def test_shells_average_to_the_normal_law():
    for dim in (3.0, 12.5):
        share, norm = gs.chi_shells(dim, 1000.0)
        assert share.sum() == pytest.approx(1.0, rel=tol.MEANFIELD_ROUNDING)
        assert share @ norm**2 == pytest.approx(dim, rel=tol.MEANFIELD_ROUNDING)
        assert share @ norm**4 == pytest.approx(dim * (dim + 2.0), rel=tol.MEANFIELD_SHELL_WIDTH)
        assert np.all(np.diff(norm) > 0.0)


def test_softmax_weight_is_the_second_moment_of_a_weight():
    """Monte Carlo over the other keys, within 4 standard errors."""
    rng, n, norm, logit = np.random.default_rng(0), 50, 1.5, 2.0
    others = np.exp(norm * rng.standard_normal((20000, n - 1))).sum(1)
    draws = (n * np.exp(logit) / (np.exp(logit) + others)) ** 2
    expected = gs.softmax_weight(np.array([norm]), np.array([[logit / norm]]), n)[0, 0, 0] ** 2
    assert abs(draws.mean() - expected) < tol.SIGMAS * draws.std() / np.sqrt(draws.size)


def test_softmax_weight_at_large_n_is_the_normalised_exponential():
    weight = gs.softmax_weight(np.array([0.5]), np.array([[-1.0, 0.0, 2.0]]), 1e9)[0, 0]
    assert weight == pytest.approx(np.exp(0.5 * np.array([-1.0, 0.0, 2.0]) - 0.125), rel=tol.MEANFIELD_EXACT)


def test_softmax_weight_is_bounded_by_n():
    weight = gs.softmax_weight(np.array([3.0]), np.array([[10.0]]), 100.0)
    assert 99.0 < weight.item() <= 100.0 * (1.0 + tol.MEANFIELD_EXACT)


def test_exact_energy_by_monte_carlo():
    rng, n, dim, c = np.random.default_rng(0), 30, 3, 0.7
    z, y = np.sqrt(c) * rng.standard_normal((4000, 1, dim)), rng.standard_normal((4000, n, dim))
    draws = n * (softmax((z * y).sum(-1)) ** 2).sum(-1)
    assert abs(draws.mean() - gs.exact_energy(n, dim, c)) < tol.SIGMAS * draws.std() / np.sqrt(draws.size)


def test_law_has_the_exact_energy():
    energies = gs.gaussian_law(500, np.full(4, 0.3)).population()
    assert energies[1] @ energies[0] ** 2 == pytest.approx(gs.exact_energy(500.0, 4.0, 0.3), rel=tol.MEANFIELD_EXACT)


def test_sink_of_alike_rows_by_dense_svd():
    """c -> 0: s_1^2 = N sum A^2 of the common row, within 4 standard errors over draws."""
    rng, n = np.random.default_rng(0), 200
    rows = softmax(np.sqrt(2.0) * rng.standard_normal((4000, n)))
    draws = n * (rows**2).sum(1)
    law = gs.sink_leading(n, np.full(3, 1e-9), np.array([1.0, 0.0, 1.0])) ** 2
    assert abs(draws.mean() - law) < tol.SIGMAS * draws.std() / np.sqrt(draws.size)


def test_sink_tends_to_the_closed_value():
    c, mean = np.array([0.1, 0.2]), np.array([0.5, 0.3])
    closed = float(gaussian_qk_ranks(c, mean)["leading_singular_value"])
    assert gs.sink_leading(1e9, c, mean) == pytest.approx(closed, rel=tol.MEANFIELD_EXACT * 100.0)


def test_geometric_population_has_the_closed_sums():
    c = np.array([0.1, 0.02, 0.05])
    sigma, mult = gs.geometric_population(c)
    closed = gaussian_qk_ranks(c)
    assert (mult @ sigma**2) / sigma[0] ** 2 == pytest.approx(float(closed["stable_rank"]), rel=tol.MEANFIELD_GRID)
    p = mult * sigma / (mult @ sigma)
    assert np.exp(-(p @ np.log(sigma / (mult @ sigma)))) == pytest.approx(
        float(closed["effective_rank"]), rel=tol.MEANFIELD_GRID
    )


def test_equal_covariances_are_their_own_equivalent():
    assert gs.equivalent_isotropic(500, np.full(8, 0.1)) == pytest.approx((8.0, 0.1), rel=tol.MEANFIELD_ROUNDING)


def test_equivalent_keeps_the_logit_variance_and_ignores_empty_directions():
    c = np.append(np.full(6, 0.1), np.zeros(4))
    dim, equal = gs.equivalent_isotropic(500, c)
    assert dim * equal == pytest.approx(0.6, rel=tol.MEANFIELD_ROUNDING)
    assert dim == pytest.approx(6.0, rel=tol.MEANFIELD_EQUIVALENT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gs.gaussian_ranks(500, [-0.1, 0.1]), r"-0\.1"),
        (lambda: gs.gaussian_ranks(500, [0.0, 0.0]), "sum 0"),
        (lambda: gs.gaussian_ranks(500, [0.1]), "D=1"),
        (lambda: gs.gaussian_ranks(-5, [0.1, 0.1]), "N=-5"),
        (lambda: gs.gaussian_ranks(500, [np.nan, 0.1]), "nan"),
        (lambda: gs.geometric_population([0.6]), r"0\.6"),
        (lambda: gs.sink_leading(500, [0.6], [1.0]), r"0\.6"),
        (lambda: gs.sink_leading(500, [0.1], [np.inf]), "inf"),
        (lambda: gs.sink_leading(-5, [0.1], [1.0]), "N=-5"),
    ],
)
def test_outside_the_domain_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
