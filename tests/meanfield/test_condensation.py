"""Regimes of the random-energy model, and the heavy-tailed bulk against dense matrices of independent logits."""

import numpy as np
import pytest

from meanfield.condensation import frozen_participation, heavy_tail, regime
from meanfield.row_statistics import gaussian_logits, row_statistics
from tests import tolerances as tol
from tests.meanfield.dense import softmax


def test_regimes():
    log_n = np.log(1000.0)
    shares = np.array([0.49, 0.51, 1.99, 2.01])
    assert list(regime(shares * log_n, 1000)) == ["dilute", "condensing", "condensing", "frozen"]


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_frozen_rows_approach_one_minus_t_over_tc(ratio):
    """The distance from 1 - T/T_c falls with N and is of order ln ln N/ln N."""
    tokens = np.array([1e3, 1e6, 1e9])
    exact = [row_statistics(gaussian_logits(2.0 * np.log(n) * ratio**2), n)["participation"] for n in tokens]
    limit = frozen_participation(2.0 * np.log(tokens) * ratio**2, tokens)
    assert limit == pytest.approx(1.0 - 1.0 / ratio, rel=tol.MEANFIELD_ROUNDING)
    distance = np.abs(exact - limit)
    assert np.all(np.diff(distance) < 0.0) and np.all(distance < np.log(np.log(tokens)) / np.log(tokens))


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_heavy_tails_of_independent_logits(share):
    """theta(v) of one dense matrix; without heavy tails (c = 0) it is 8 to 30 per cent off at these shares."""
    tokens = 400
    variance = share * np.log(tokens)
    logits = np.sqrt(variance) * np.random.default_rng(1).standard_normal((tokens, tokens))
    squares = np.linalg.svd(softmax(logits), compute_uv=False)[1:] ** 2
    v = np.exp(np.arange(-1.0, 5.0)) * tokens / squares.sum()
    theta = (v[:, None] * squares / (1.0 + v[:, None] * squares)).mean(1)
    c1, c2 = heavy_tail(gaussian_logits(variance), tokens)
    predicted = theta / (1.0 - theta) ** 2 * np.exp(c1 * theta + c2 * theta**2) * tokens / squares.sum()
    log_error = np.abs(np.log(predicted / v))
    free_error = np.abs(np.log(theta / (1.0 - theta) ** 2 * tokens / squares.sum() / v))
    assert log_error.max() < tol.MEANFIELD_HEAVY_TAIL
    assert log_error.mean() < 0.8 * free_error.mean()


def test_light_tails_are_free():
    assert np.abs(heavy_tail(gaussian_logits(0.1), 1e6)).max() < tol.MEANFIELD_GRID


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regime(-1.0, 10), "logit_variance=-1"),
        (lambda: regime(1.0, np.inf), "inf"),
        (lambda: frozen_participation(np.nan, 10), "nan"),
        (lambda: heavy_tail(gaussian_logits(1.0), 1.0), "N=1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
