"""The finite-N law against dense SVD of softmax matrices between uniform directions, and its exact identities."""

import numpy as np
import pytest
from scipy.special import ive

from meanfield import ranks, sphere
from meanfield.condensation import condensed
from meanfield.finite_n import PopulationLaw
from meanfield.qk_norm import sphere_law, sphere_ranks
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


@pytest.mark.parametrize(("dim", "share", "tokens"), [(4, 0.5, 300), (16, 0.5, 400), (64, 0.3, 500), (32, 0.5, 500)])
def test_damped_law_against_dense_svd(dim, share, tokens):
    """Up to and beyond s^2 = ln(N)/2, where the law of free features is up to 11 per cent off."""
    kappa = np.sqrt(share * dim * np.log(tokens))
    measured = sphere_singular_values(np.random.default_rng(dim), tokens, dim, kappa)
    law = sphere_law(kappa, dim)
    found, free = law.ranks(tokens), PopulationLaw(law.sigma, law.multiplicity).ranks(tokens)
    assert found["effective_rank"] == pytest.approx(ranks.effective_rank(measured), rel=tol.MEANFIELD_DAMPED)
    assert found["nuclear"] == pytest.approx(measured.sum(), rel=tol.MEANFIELD_DAMPED)
    assert found["stable_rank"] == pytest.approx(ranks.stable_rank(measured), rel=tol.MEANFIELD_DAMPED_SECOND_MOMENTS)
    if dim > 8:
        truth = np.log(ranks.effective_rank(measured))
        assert abs(np.log(found["effective_rank"]) - truth) < 0.7 * abs(np.log(free["effective_rank"]) - truth)


@pytest.mark.parametrize(("kappa", "dim", "tokens"), [(8.0, 64, 700.0), (16.0, 64, 3000.0), (5.0, 4, 90.0)])
def test_interpolation_in_tokens(kappa, dim, tokens):
    law = sphere_law(kappa, dim)
    direct = law.at(tokens).ranks(tokens)
    for name, value in law.ranks(tokens).items():
        assert value == pytest.approx(direct[name], rel=tol.MEANFIELD_INTERPOLATED)


def test_switch_to_the_limit_of_many_tokens():
    """The last N at which the damped population is used hardly differs from the limit."""
    law = sphere_law(8.0, 64)
    tokens = 2.0 ** max(j for j in range(1, 40) if law.at(2.0**j) is not law)
    limit = PopulationLaw(law.sigma, law.multiplicity).ranks(tokens)
    for name, value in law.at(tokens).ranks(tokens).items():
        assert value == pytest.approx(limit[name], rel=tol.MEANFIELD_SWITCH)
    assert law.ranks(1e9)["effective_rank"] < 1e9


def test_frozen_rows_stay_finite():
    law = sphere_law(40.0, 64)
    found = law.ranks(np.array([2.0, 100.0, 1e4]))
    assert all(np.all(np.isfinite(x)) and np.all(x > 0.0) for x in found.values())
    assert list(law.regime(np.array([100.0, 1e4, 1e9]))) == ["frozen", "frozen", "condensing"]


def test_the_reference_number_of_the_theory():
    """D = 8, kappa = 3, N = 1000: the law printed 138.8 when the leading mode was not apart; dense SVD 137.9."""
    assert sphere_ranks(1000, 3.0, 8)["effective_rank"] == pytest.approx(138.8, rel=tol.MEANFIELD_LAW)


@pytest.mark.parametrize(("kappa", "bound"), [(4.5, tol.MEANFIELD_LAW), (6.0, tol.MEANFIELD_CONDENSING)])
def test_counted_singular_values_against_dense_svd(kappa, bound):
    measured = sphere_singular_values(np.random.default_rng(0), 500, 8, kappa)
    law = sphere_law(kappa, 8).singular_values(500, 250)
    assert law.shape == (250,) and np.all(np.diff(law) <= 0.0)
    middle = slice(5, 250)
    assert np.median(np.abs(law[middle] / measured[middle] - 1.0)) < bound
    assert law[1] == pytest.approx(measured[1], rel=tol.MEANFIELD_TOP_VALUES)


def test_counted_singular_values_have_the_ranks_of_the_integrals():
    """Two routes to the same limit: quantiles of Im Phi and integrals of P; the discretisation differs."""
    law = sphere_law(4.0, 16)
    values = law.singular_values(400, 400)
    direct = law.at(400.0).ranks(400)
    for name, value in ranks.spectrum_ranks(values).items():
        assert value == pytest.approx(direct[name], rel=tol.MEANFIELD_GRID)


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
