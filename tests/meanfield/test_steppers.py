"""Declared orders of the steppers against orders measured by halving the step."""

import numpy as np
import pytest

from meanfield.measure import unit
from meanfield.particles import Dynamics, simulate
from meanfield.steppers import Adaptive, euler, heun, rk4
from tests import tolerances as tol

FIXED = pytest.mark.parametrize("method", [euler, heun, rk4], ids=lambda method: method.__name__)


def measured_order(error, step):
    """log2 of the ratio of the errors at steps h and h/2, extrapolated from two halvings."""
    errors = [error(step / 2**i) for i in range(3)]
    first, second = (np.log2(errors[i] / errors[i + 1]) for i in range(2))
    return 2.0 * second - first


def pendulum(t, x):
    """A driven pendulum: nonlinear, and explicit in time, so that the nodes c_i matter."""
    return np.array([x[1], -np.sin(x[0]) + np.cos(2.0 * t)])


@FIXED
def test_order_on_a_driven_pendulum(method):
    start = np.array([1.0, 0.3])
    exact = Adaptive(1e-13, 1e-13).advance(pendulum, start, 0.0, 2.0)

    def error(step):
        return np.linalg.norm(method(step).advance(pendulum, start, 0.0, 2.0) - exact)

    assert measured_order(error, 0.05) == pytest.approx(method().order, abs=tol.MEANFIELD_ORDER)


@pytest.mark.parametrize("placement", ["pre-ln", "peri-ln", "sqrt"])
@FIXED
def test_order_on_the_particle_flow(method, placement):
    x = unit(np.random.default_rng(0).standard_normal((12, 4)))
    dynamics = Dynamics(placement, beta=2.0, frames=3)

    def end(stepper):
        return simulate(x, dynamics, layers=1, flow=stepper, record=[]).final.points

    exact = end(Adaptive(1e-13, 1e-13))
    order = measured_order(lambda step: np.linalg.norm(end(method(step)) - exact), 0.125)
    assert order == pytest.approx(method().order, abs=tol.MEANFIELD_ORDER)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-9])
def test_the_adaptive_stepper_keeps_its_tolerance(tolerance):
    """x' = -2 t x^2 from 1 is 1/(1 + t^2)."""
    end = Adaptive(tolerance, tolerance).advance(lambda t, x: -2.0 * t * x**2, np.ones((1, 1)), 0.0, 3.0)
    assert end.shape == (1, 1)
    assert abs(end[0, 0] - 0.1) < tol.MEANFIELD_STEP_TOLERANCE * tolerance


def test_an_interval_is_cut_into_equal_steps():
    calls = []

    def velocity(t, x):
        calls.append(t)
        return np.ones_like(x)

    assert euler(0.3).advance(velocity, np.zeros(1), 1.0, 2.0) == pytest.approx(1.0)
    assert calls == pytest.approx([1.0, 1.25, 1.5, 1.75])
    calls.clear()
    euler(0.1).advance(velocity, np.zeros(1), 0.0, 1.0)
    assert len(calls) == 10


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="step=0"):
        rk4(0.0)
    with pytest.raises(ValueError, match="step has shape"):
        rk4([0.1])
    with pytest.raises(ValueError, match="rtol=-1"):
        Adaptive(rtol=-1.0)
    with pytest.raises(ValueError, match="Loosen rtol"):
        Adaptive().advance(lambda t, x: x**2, np.ones(1), 0.0, 2.0)
