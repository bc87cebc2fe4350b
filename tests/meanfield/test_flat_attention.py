"""Flat attention: the exact Pre-LN solution against the flow."""

import numpy as np
import pytest

from meanfield import equiangular as eq
from meanfield.flat_attention import flat_attention_norm
from tests import tolerances as tol


@pytest.mark.parametrize("time", [0.0, 1.0, 5.0, 50.0])
def test_flat_attention_is_solved_exactly(time):
    system = eq.Equiangular(16, 0.0, 0.8, norm=1.3, gain=0.7)
    exact = flat_attention_norm(system, time)
    g, r = eq.trajectory(system, [time])
    assert r[0] == pytest.approx(exact, rel=tol.DYNAMICS_INTEGRATION)
    assert g[0] == pytest.approx(0.8 * 1.3**2 / exact**2, rel=tol.DYNAMICS_INTEGRATION)


def test_many_tokens_make_attention_flat():
    """N -> infinity at fixed beta gives the solution of beta = 0; the difference falls as 1/N."""
    errors = []
    for tokens in (1e4, 1e5):
        system = eq.Equiangular(tokens, 2.0, 0.8, norm=1.3)
        errors.append(eq.trajectory(system, [5.0])[1][0] / flat_attention_norm(system, 5.0) - 1.0)
    assert errors[0] / errors[1] == pytest.approx(10.0, rel=tol.DYNAMICS_ORDER)


@pytest.mark.parametrize("time", [0.0, 1e-17, 1e-15])
def test_times_below_rounding_return_the_start(time):
    norm = flat_attention_norm(eq.Equiangular(16, 0.0, 0.8), time)
    assert norm == pytest.approx(1.0, rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(
    ("time", "message"), [(-1.0, "time=-1"), ([1.0], "time has shape"), (np.nan, "time contains nan")]
)
def test_bad_input_is_named(time, message):
    with pytest.raises(ValueError, match=message):
        flat_attention_norm(eq.Equiangular(8, 0.0), time)
