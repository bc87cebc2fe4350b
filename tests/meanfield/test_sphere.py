"""The damped kernel of the sphere: its limit of many tokens, its exact energy, its leading value."""

import numpy as np
import pytest

from meanfield import sphere
from meanfield.row_statistics import row_statistics, sphere_logits
from tests import tolerances as tol
from tests.meanfield.dense import sphere_singular_values


@pytest.mark.parametrize(("kappa", "dim"), [(10.0, 3), (3.0, 8), (8.0, 64), (2.0, 2)])
def test_many_tokens_give_the_exponential_kernel(kappa, dim):
    """Damping is of order E e^{3l}/N: at N = 1e13 the first degrees are I_{k+nu}/I_nu."""
    sigma, multiplicity, _ = sphere.damped_spectrum(kappa, dim, 1e13)
    limit, limit_multiplicity = sphere.sphere_spectrum(kappa, dim)
    assert sigma[:6] == pytest.approx(limit[:6], rel=tol.MEANFIELD_SERIES)
    assert multiplicity[:6] == pytest.approx(limit_multiplicity[:6], rel=tol.MEANFIELD_SERIES)


@pytest.mark.parametrize(("kappa", "dim", "tokens"), [(10.0, 3, 100.0), (16.0, 64, 1000.0), (28.0, 64, 500.0)])
def test_energy_is_the_exact_one(kappa, dim, tokens):
    sigma, multiplicity, density = sphere.damped_spectrum(kappa, dim, tokens)
    exact = tokens * row_statistics(density, tokens)["participation"]
    assert multiplicity @ sigma**2 == pytest.approx(exact, rel=tol.MEANFIELD_SERIES)
    assert np.all(np.diff(sigma[1:]) <= 0.0) and sigma[0] >= 1.0


def test_leading_value_against_dense_svd():
    """s_1^2 - 1 from columns that do not sum to one; 30 matrices."""
    rng = np.random.default_rng(2)
    squares = np.array([sphere_singular_values(rng, 150, 3, 5.0)[0] ** 2 for _ in range(30)])
    predicted = sphere.damped_spectrum(5.0, 3, 150.0)[0][0] ** 2
    error = squares.std() / np.sqrt(squares.size)
    assert abs(predicted - squares.mean()) < tol.SIGMAS * error
    assert predicted - 1.0 > tol.SIGMAS * error


def test_kappa_beyond_the_quadrature_is_named():
    with pytest.raises(ValueError, match="kappa=600"):
        sphere.damped_spectrum(600.0, 8, 100.0)
    with pytest.raises(ValueError, match="N=1"):
        sphere.damped_spectrum(3.0, 8, 1.0)


def test_density_of_the_angle():
    density = sphere_logits(1.0, 5)
    assert density.weight @ density.values**2 == pytest.approx(1.0 / 5.0, rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(("kappa", "dim", "tokens"), [(1e-12, 64, 2), (1e-6, 1000, 1e12)])
def test_nearly_uniform_rows_keep_a_finite_spectrum(kappa, dim, tokens):
    sigma, multiplicity, _ = sphere.damped_spectrum(kappa, dim, tokens)
    assert np.isfinite(sigma).all() and sigma[0] == pytest.approx(1.0) and multiplicity[0] == 1.0


@pytest.mark.parametrize(
    ("kappa", "dim", "named"), [(100.0, 1000, "multiplicities"), (1.0, 10**6, "dim"), (1.0, 2.5, "dim")]
)
def test_dimensions_out_of_reach_are_named(kappa, dim, named):
    with pytest.raises(ValueError, match=named):
        sphere.damped_spectrum(kappa, dim, 1e3)
