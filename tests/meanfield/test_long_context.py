"""The critical scaling of attention with the length of the context (arXiv:2510.05554)."""

import numpy as np
import pytest

from meanfield import long_context as lc
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax


@pytest.mark.parametrize(("tokens", "beta", "rho"), [(2, 1.0, 0.3), (40, 6.0, 0.4), (25, 0.0, 0.0), (30, 9.0, 0.0)])
def test_the_finite_formula_is_exact(tokens, beta, rho):
    x = equiangular_tokens(tokens, 1.0 - rho)
    out = softmax(beta * x @ x.T) @ x
    measured = out[0] @ out[1] / (np.linalg.norm(out[0]) * np.linalg.norm(out[1]))
    assert lc.output_cosine(tokens, beta, rho) == pytest.approx(measured, rel=tol.MEANFIELD_EXACT)


def test_three_regimes():
    """Printed numbers at rho = .4 (docs/theory/dynamics.md, 1.4) and the limits, which they approach."""
    scaling = lc.critical_scaling(0.4) * np.array([0.8, 1.0, 1.2])
    limit = lc.limiting_cosine(scaling, 0.4)
    assert limit == pytest.approx([1.0, 4 * 0.4 / (1 + 3 * 0.4), 0.4], rel=tol.MEANFIELD_ROUNDING)
    printed = {1e3: [0.9434, 0.7277, 0.5108], 1e6: [0.9947, 0.7273, 0.4297], 1e9: [0.9996, 0.7273, 0.4076]}
    distance = []
    for tokens, numbers in printed.items():
        cosine = lc.output_cosine(tokens, scaling * np.log(tokens), 0.4)
        assert cosine == pytest.approx(numbers, abs=tol.DYNAMICS_FOUR_DIGITS)
        distance.append(np.abs(cosine - limit))
    assert np.all(np.diff(distance, axis=0) < 0.0)


def test_the_limit_keeps_its_regimes_at_orthogonal_tokens():
    assert lc.limiting_cosine([0.5, 1.0, 2.0], 0.0) == pytest.approx([1.0, 0.0, 0.0], abs=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lc.output_cosine(1, 1.0, 0.5), "N=1"),
        (lambda: lc.output_cosine(8, -1.0, 0.5), "beta=-1"),
        (lambda: lc.output_cosine(8, 1.0, np.nan), "rho contains nan"),
        (lambda: lc.limiting_cosine(1.0, 1.0), "rho < 1"),
        (lambda: lc.limiting_cosine(np.inf, 0.5), "scaling contains inf"),
        (lambda: lc.critical_scaling(-0.1), "rho=-0.1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
