"""The finite-N law against dense SVD of softmax matrices between uniform directions, and its exact identities."""

import numpy as np
import pytest
from scipy.special import ive

from meanfield import ranks, sphere
from meanfield.finite_n import PopulationLaw, condensed, sphere_law, sphere_ranks
from tests import tolerances as tol
from tests.meanfield.dense import sphere_singular_values


@pytest.mark.parametrize(("kappa", "dim"), [(8.0, 64), (3.0, 8), (0.01, 16), (200.0, 3)])
def test_bessel_ratios_against_scipy(kappa, dim):
    order = dim / 2 - 1 + np.arange(6)
    expected = ive(order + 1, kappa) / ive(order, kappa)
    assert sphere.bessel_ratio(kappa, dim, 6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("kappa", "dim"), [(8.0, 64), (10.0, 3), (5.0, 2), (8.0, 1024), (300.0, 64), (1e-3, 16)])
def test_sphere_energies_obey_parseval(kappa, dim):
    """sum multiplicity sigma^2 = E e^{2l}/(E e^l)^2 is an identity; sigma and multiplicity enter both."""
    sigma, multiplicity = sphere.sphere_spectrum(kappa, dim)
    assert multiplicity @ sigma**2 == pytest.approx(sphere.frobenius_squared(kappa, dim), rel=tol.MEANFIELD_SERIES)


def test_sphere_reaches_large_dimension_and_kappa():
    sigma, multiplicity = sphere.sphere_spectrum(50.0, 1024)
    assert np.all(np.isfinite(sigma)) and np.all(np.isfinite(multiplicity)) and sigma[0] == 1.0


def test_sphere_entropy_against_sampled_keys():
    rng = np.random.default_rng(3)
    logits = 4.0 * np.array([k[0] / np.linalg.norm(k) for k in rng.standard_normal((20_000, 8))])
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    sampled = np.log(weights.size) + (weights * np.log(weights)).sum()
    error = np.std(weights * weights.size * (np.log(weights * weights.size) - sampled)) / np.sqrt(weights.size)
    assert abs(sphere.entropy_deficit(4.0, 8) - sampled) < 4.0 * error
    assert sphere.kappa_from_deficit(sphere.entropy_deficit(4.0, 8), 8) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize(("dim", "kappa", "tokens"), [(3, 10.0, 300), (8, 3.0, 300), (8, 6.0, 500), (64, 8.0, 500)])
def test_law_against_dense_svd(dim, kappa, tokens):
    measured = sphere_singular_values(np.random.default_rng(dim), tokens, dim, kappa)
    law = sphere_law(kappa, dim).ranks(tokens)
    assert law["effective_rank"] == pytest.approx(ranks.effective_rank(measured), rel=tol.MEANFIELD_LAW)
    assert law["effective_rank_energy"] == pytest.approx(
        ranks.effective_rank_energy(measured), rel=tol.MEANFIELD_LAW_SECOND_MOMENTS
    )
    assert law["frobenius"] ** 2 == pytest.approx((measured**2).sum(), rel=tol.MEANFIELD_LAW_SECOND_MOMENTS)
    assert law["participation_ratio"] == pytest.approx(
        ranks.participation_ratio(measured), rel=tol.MEANFIELD_LAW_SECOND_MOMENTS
    )
    assert law["nuclear"] == pytest.approx(measured.sum(), rel=tol.MEANFIELD_LAW)


def test_the_reference_number_of_the_theory():
    """D = 8, kappa = 3, N = 1000: the law printed 138.8 when the leading mode was not apart; dense SVD 137.9."""
    assert sphere_ranks(1000, 3.0, 8)["effective_rank"] == pytest.approx(138.8, rel=tol.MEANFIELD_LAW)


def test_counted_singular_values_against_dense_svd():
    measured = sphere_singular_values(np.random.default_rng(0), 500, 8, 6.0)
    law = sphere_law(6.0, 8).singular_values(500, 250)
    assert law.shape == (250,) and np.all(np.diff(law) <= 0.0)
    middle = slice(5, 250)
    assert np.median(np.abs(law[middle] / measured[middle] - 1.0)) < tol.MEANFIELD_LAW
    assert law[1] == pytest.approx(measured[1], rel=tol.MEANFIELD_TOP_VALUES)


def test_counted_singular_values_have_the_ranks_of_the_integrals():
    """Two routes to the same limit: quantiles of Im Phi and integrals of P; the discretisation differs."""
    law = sphere_law(4.0, 16)
    values = law.singular_values(400, 400)
    for name, value in ranks.spectrum_ranks(values).items():
        assert value == pytest.approx(law.ranks(400)[name], rel=tol.MEANFIELD_GRID)


def test_many_tokens_reach_the_population():
    """The population of D = 3, kappa = 2 has few modes: at N = 1e9 nothing is left to resolve."""
    law = sphere_law(2.0, 3)
    population = np.repeat(law.sigma, law.multiplicity.round().astype(int))
    at_large = law.ranks(1e9)
    for name, value in ranks.spectrum_ranks(population).items():
        assert at_large[name] == pytest.approx(value, rel=tol.MEANFIELD_GRID)


def test_flat_bulk_has_the_quarter_circle_ranks():
    """Very many equal tiny modes are white noise, whose singular values are a quarter circle (closed form)."""
    modes, energy, tokens = 1e9, 0.5, 1000
    law = PopulationLaw(np.array([1.0, np.sqrt(energy / modes)]), np.array([1.0, modes]))
    nuclear = 8.0 / (3.0 * np.pi) * np.sqrt(tokens * energy)
    assert law.ranks(tokens)["nuclear"] == pytest.approx(1.0 + nuclear, rel=tol.MEANFIELD_GRID)


def test_ranks_rise_with_tokens_and_broadcast():
    tokens = np.geomspace(10, 1e6, 30).reshape(5, 6)
    found = sphere_ranks(tokens, 8.0, 64)["effective_rank"]
    assert found.shape == (5, 6) and np.all(np.diff(found.ravel()) > 0.0) and np.all(found <= tokens)
    assert found[2, 3] == pytest.approx(sphere_ranks(tokens[2, 3], 8.0, 64)["effective_rank"], rel=tol.MEANFIELD_GRID)


def test_condensation_threshold():
    assert condensed(0.51 * np.log(100), 100) and not condensed(0.49 * np.log(100), 100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sphere_ranks(-5, 3.0, 8), "N=-5"),
        (lambda: sphere_ranks(np.nan, 3.0, 8), "nan"),
        (lambda: sphere_ranks(10, 0.0, 8), "kappa=0"),
        (lambda: sphere_ranks(10, np.inf, 8), "kappa=inf"),
        (lambda: sphere_ranks(10, 3.0, 1), "dim=1"),
        (lambda: sphere_law(3.0, 8).singular_values(10, 11), "k=11"),
        (lambda: sphere_law(1e9, 64), "lower kappa"),
        (lambda: sphere_law(500.0, 4096), "lower kappa or D"),
        (lambda: PopulationLaw(np.array([1.0, 2.0]), np.array([1.0, 1.0])), "descending"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
