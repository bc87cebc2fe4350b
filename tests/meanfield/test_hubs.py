"""Leading singular value from columns: the model's own matrix, its limits, and dense attention."""

import numpy as np
import pytest

from meanfield import gaussian_spectrum as gs
from meanfield import hubs
from meanfield.ranks import spectrum_ranks
from tests import tolerances as tol
from tests.meanfield.dense import softmax


def test_secular_equation_is_the_largest_eigenvalue_of_the_model():
    """b b^T + P D P with rows that sum to one, P the projection off the constants: exact for every c and d."""
    rng, n = np.random.default_rng(0), 40
    total, d = rng.gamma(2.0, 1.0, n), rng.random(n)
    total /= total.mean()
    projection = np.eye(n) - 1.0 / n
    model = np.outer(total, total) / n + projection @ np.diag(d) @ projection
    x = hubs._largest(total, (total - 1.0) ** 2, d, np.full(n, 1.0 / n))
    assert x == pytest.approx(np.linalg.eigvalsh(model)[-1], rel=tol.MEANFIELD_ROOT)


def test_a_hub_carries_the_leading_value():
    column_sum, column_energy, count = np.array([[1.0, 1.0]]), np.array([[8.0, 1e-3]]), np.array([1.0, 1e6])
    leading = hubs.second_moments(column_sum, column_energy, count)["leading"]
    assert leading == pytest.approx(8.0, rel=tol.MEANFIELD_EXACT * 1e4)


def test_alike_columns_have_the_first_order_of_the_sphere():
    n, energy = 1e6, 5.0
    moments = hubs.second_moments(np.ones((1, 2)), np.full((1, 2), energy / n), np.array([1.0, n - 1.0]))
    assert (moments["leading"] - 1.0) * n == pytest.approx(energy - 1.0, rel=tol.MEANFIELD_FIXED_POINT)


def test_keys_are_all_counted_and_the_longest_has_its_quantiles():
    norms, count = hubs.key_norms(2.0, 1000.0)
    assert count.sum() == pytest.approx(1000.0, rel=tol.MEANFIELD_ROUNDING)
    shorter = (1.0 - np.exp(-0.5 * norms[:, 0] ** 2)) ** 1000  # chi with 2 degrees of freedom
    assert shorter == pytest.approx((np.arange(hubs.LEVELS) + 0.5) / hubs.LEVELS, rel=tol.MEANFIELD_EXACT)
    assert np.all(np.diff(norms, axis=1) < 0.0)


@pytest.mark.parametrize(("dim", "variance"), [(4, 1.2), (16, 1.5)])
def test_columns_add_up_to_the_exact_rows(dim, variance):
    """Column sums average to one and column energies to E |A|_F^2."""
    c = variance / dim
    norms, count = hubs.key_norms(dim, 500.0)
    total, energy = gs.column_statistics(500.0, dim, c, norms)
    assert ((total @ count) / 500.0).mean() == pytest.approx(1.0, rel=tol.MEANFIELD_COLUMN_SUMS)
    exact = gs.exact_energy(500.0, dim, c)
    assert (energy @ count).mean() == pytest.approx(exact, rel=tol.MEANFIELD_COLUMN_ENERGY)


def test_second_moments_by_dense_svd():
    """Condensing rows, where the longest keys are hubs: mean of 12 draws within 4 standard errors and the claim."""
    n, dim, c, draws = 200, 4, 0.55, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        a = softmax(np.sqrt(c) * rng.standard_normal((n, dim)) @ rng.standard_normal((dim, n)))
        ranks = spectrum_ranks(np.linalg.svd(a, compute_uv=False))
        draws.append([float(ranks["stable_rank"]), float(ranks["participation_ratio"])])
    mean, error = np.mean(draws, 0), np.std(draws, 0, ddof=1) / np.sqrt(len(draws))
    law = gs.gaussian_ranks(n, np.full(dim, c))
    for index, name in enumerate(("stable_rank", "participation_ratio")):
        assert abs(law[name] - mean[index]) < tol.SIGMAS * error[index] + tol.MEANFIELD_SHELLS * mean[index]
