"""Attention without skip connection: exact distances, the cubic law and the Gaussian cloud."""

import numpy as np
import pytest
from scipy.stats import norm

from meanfield import skipless as sk
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax


def test_distances_are_exact_until_they_vanish():
    tokens, beta = 8, 4.0
    x, distances = equiangular_tokens(tokens, 0.8), []
    for _ in range(5):
        distances.append(np.linalg.norm(x[0] - x[1]))
        x = softmax(beta * x @ x.T) @ x
    predicted = sk.skipless_layers(distances[0], beta, tokens, 4)
    assert predicted[:4] == pytest.approx(distances[:4], rel=tol.MEANFIELD_EXACT)
    assert predicted[4] == pytest.approx(distances[4], abs=tol.MEANFIELD_ROUNDING)
    assert predicted[1:4] == pytest.approx([0.94399522, 0.36052745, 0.01290037], abs=tol.DYNAMICS_PRINTED)


def test_small_distances_are_cubed():
    """Relative error of the cubic law falls as beta Delta^2; the logarithm of the scaled distance triples: 3^L."""
    tokens, beta = 8, 4.0
    distance = np.array([1e-2, 1e-3])
    error = sk.cubic_distance(distance, beta, tokens) / sk.skipless_distance(distance, beta, tokens) - 1.0
    assert error[0] / error[1] == pytest.approx(100.0, rel=tol.DYNAMICS_ORDER)
    path = np.log(sk.skipless_layers(1e-2, beta, tokens, 4) * np.sqrt(beta / (2 * tokens)))
    assert path[1:] / path[:-1] == pytest.approx(np.full(4, 3.0), abs=tol.DYNAMICS_PRINTED * 100)


def test_a_gaussian_cloud_is_cubed_too():
    """1500 quantiles of N(0, .64) at beta = .9 against beta sigma^3 = .46080: the difference is their missing tail."""
    x = norm.ppf((np.arange(1500) + 0.5) / 1500)
    x *= 0.8 / x.std()
    out = softmax(0.9 * np.outer(x, x)) @ x
    assert sk.gaussian_skipless(0.8, 0.9) == pytest.approx(0.4608, rel=tol.MEANFIELD_ROUNDING)
    assert sk.gaussian_skipless(0.8, 0.9) == pytest.approx(out.std(), rel=tol.DYNAMICS_QUANTILES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sk.skipless_distance(-1.0, 1.0, 8), "distance=-1"),
        (lambda: sk.skipless_distance(1.0, np.inf, 8), "beta contains inf"),
        (lambda: sk.cubic_distance(1.0, 1.0, 0), "N=0"),
        (lambda: sk.skipless_layers(1.0, 1.0, 8, -1), "layers=-1"),
        (lambda: sk.gaussian_skipless(np.nan, 1.0), "distance contains nan"),
        (lambda: sk.skipless_layers([1.0], 1.0, 8, 2), "distance has shape"),
        (lambda: sk.skipless_layers(1.0, [1.0], 8, 2), "beta has shape"),
        (lambda: sk.skipless_layers(1.0, 1.0, 8, 2.5), "layers=2.5"),
        (lambda: sk.skipless_distance(1e300, 1.0, 8), "another unit"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
