"""Mehler's formula against discretised operators and against singular values."""

import numpy as np
import pytest

from meanfield import mehler
from meanfield.closed_forms import gaussian_qk_ranks
from tests import tolerances as tol

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def discretised(logits):
    """Attention between Gauss-Hermite nodes as an operator on functions of the nodes."""
    weights = np.exp(logits - logits.max(1, keepdims=True)) * WEIGHTS
    return weights / weights.sum(1, keepdims=True)


def operators(h):
    x = NODES
    return {"dot": discretised(h * np.outer(x, x)), "kernel": discretised(-0.5 * h * (x[:, None] - x) ** 2)}


def norm(operator):
    return np.sqrt(
        (np.sqrt(WEIGHTS)[:, None] * operator / np.sqrt(WEIGHTS)).ravel()
        @ (np.sqrt(WEIGHTS)[:, None] * operator / np.sqrt(WEIGHTS)).ravel()
    )


def test_dot_product_in_one_dimension():
    operator, closed = operators(0.3)["dot"], mehler.dot_product_attention(0.3, [1.0])
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(operator)))[::-1]
    assert eigenvalues[1] == pytest.approx(closed["second_eigenvalue"], rel=tol.MEANFIELD_QUADRATURE)
    assert norm(operator) == pytest.approx(closed["frobenius"], rel=tol.MEANFIELD_QUADRATURE)


def test_gaussian_kernel_in_one_dimension():
    operator, closed = operators(0.8)["kernel"], mehler.gaussian_kernel_attention(0.8, [1.0])
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(operator)))[::-1]
    assert eigenvalues[1] == pytest.approx(closed["second_eigenvalue"], rel=tol.MEANFIELD_QUADRATURE)
    assert np.trace(operator) == pytest.approx(closed["trace"], rel=tol.MEANFIELD_QUADRATURE)
    assert norm(operator) == pytest.approx(closed["frobenius"], rel=tol.MEANFIELD_QUADRATURE)
    assert closed["gap"] == pytest.approx(1.0 / 1.8, rel=tol.MEANFIELD_ROUNDING)


def test_dot_product_norm_is_that_of_its_singular_values():
    """Self-attention is the case c = (beta lambda)^2 of Gaussian queries and keys."""
    variances = np.array([0.5, 0.2])
    closed = mehler.dot_product_attention(1.1, variances)["frobenius"]
    assert closed == pytest.approx(gaussian_qk_ranks((1.1 * variances) ** 2)["frobenius"], rel=tol.MEANFIELD_ROUNDING)


def test_products_of_eigenvalues():
    values = mehler.product_eigenvalues([0.8, 0.5], 6)
    assert values == pytest.approx([1.0, 0.8, 0.64, 0.512, 0.5, 0.4096], rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mehler.dot_product_attention(1.0, [0.72]), r"0\.72 reaches"),
        (lambda: mehler.dot_product_attention(-1.0, [0.1]), "beta=-1"),
        (lambda: mehler.gaussian_kernel_attention(1.0, [-0.1]), r"variances=-0\.1"),
        (lambda: mehler.gaussian_kernel_attention(np.inf, [0.1]), "inf"),
        (lambda: mehler.product_eigenvalues([1.0], 3), "factors=1"),
    ],
)
def test_outside_the_domain_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
