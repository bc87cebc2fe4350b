"""Exact row statistics against Monte Carlo and the limits of the random-energy model."""

import numpy as np
import pytest

from meanfield.row_statistics import LogitDensity, entry_moments, gaussian_logits, row_statistics, sphere_logits
from tests import tolerances as tol


def sampled(logits):
    """Mean and standard error of ln Z, H and sum A^2 over rows of logits."""
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    log_z = np.log(weights.sum(-1)) + top[:, 0]
    weights /= weights.sum(-1, keepdims=True)
    columns = {
        "log_partition": log_z,
        "entropy": log_z - (weights * logits).sum(-1),
        "participation": (weights**2).sum(-1),
    }
    return {name: (x.mean(), x.std() / np.sqrt(x.size)) for name, x in columns.items()}


@pytest.mark.parametrize("tokens", [2, 10, 500])
@pytest.mark.parametrize("variance", [0.01, 1.0, 6.0, 30.0])
def test_gaussian_rows_against_sampling(tokens, variance):
    rng = np.random.default_rng(tokens)
    logits = np.sqrt(variance) * rng.standard_normal((1000 + 20_000 // tokens, tokens))
    exact = row_statistics(gaussian_logits(variance), tokens)
    for name, (mean, error) in sampled(logits).items():
        assert abs(exact[name] - mean) < tol.SIGMAS * error, name


@pytest.mark.parametrize(("kappa", "dim", "tokens"), [(10.0, 3, 50), (16.0, 64, 200), (30.0, 8, 2), (2.0, 2, 7)])
def test_sphere_rows_against_sampling(kappa, dim, tokens):
    rng = np.random.default_rng(dim)
    along, across = rng.standard_normal((2, 1000 + 20_000 // tokens, tokens))
    across = across**2 if dim == 2 else rng.chisquare(dim - 1, along.shape)
    exact = row_statistics(sphere_logits(kappa, dim), tokens)
    for name, (mean, error) in sampled(kappa * along / np.sqrt(along**2 + across)).items():
        assert abs(exact[name] - mean) < tol.SIGMAS * error, name


def test_two_logits_exactly():
    """N = 2, logits 0 or 1 with equal chance: three kinds of rows."""
    exact = row_statistics(LogitDensity(np.array([0.0, 1.0]), np.log([0.5, 0.5])), 2)
    share = 1.0 / (1.0 + np.exp(-1.0))
    assert exact["participation"] == pytest.approx(
        0.25 + 0.5 * (share**2 + (1 - share) ** 2), rel=tol.MEANFIELD_ROUNDING
    )
    log_z = 0.25 * np.log(2.0) + 0.5 * np.log1p(np.e) + 0.25 * (1.0 + np.log(2.0))
    assert exact["log_partition"] == pytest.approx(log_z, rel=tol.MEANFIELD_ROUNDING)


def test_weights_sum_to_one():
    density = gaussian_logits(5.0)
    first, second = entry_moments(density, 100.0)
    assert 100.0 * (density.weight @ first) == pytest.approx(1.0, rel=tol.MEANFIELD_ROUNDING)
    assert np.all(second <= first) and np.all(second >= first**2 * (1.0 - tol.MEANFIELD_ROUNDING))


def test_dilute_limit_at_a_billion_keys():
    """ln N - s^2/2 and N sum A^2 = e^{s^2}, with corrections of order 1/N."""
    found = row_statistics(gaussian_logits(1.0), 1e9)
    assert np.log(1e9) - found["entropy"] == pytest.approx(0.5, rel=tol.MEANFIELD_DILUTE)
    assert 1e9 * found["participation"] == pytest.approx(np.e, rel=tol.MEANFIELD_DILUTE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_statistics(gaussian_logits(1.0), 1), "N=1"),
        (lambda: row_statistics(gaussian_logits(1.0), np.nan), "nan"),
        (lambda: gaussian_logits(-1.0), "variance=-1"),
        (lambda: sphere_logits(np.inf, 8), "inf"),
        (lambda: LogitDensity(np.zeros(3), np.zeros(3)), "sum to 3"),
        (lambda: LogitDensity(np.zeros(3), np.zeros(2)), "equal vectors"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
