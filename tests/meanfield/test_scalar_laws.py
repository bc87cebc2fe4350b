"""Scalar laws against integration of their equations and small particle systems."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from meanfield import scalar_laws as sl
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax

EXACT = {"rtol": 1e-11, "atol": 1e-13}


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_power_law_solves_its_equation(power):
    flow = solve_ivp(lambda _t, w: -0.7 * w ** (1.0 + power), (0.0, 5.0), [1.3], **EXACT)
    found = sl.power_law_decay(5.0, 1.3, 0.7, power)
    assert found == pytest.approx(flow.y[0, -1], rel=tol.DIFFUSION_INTEGRATION)


def test_haff_forgets_the_initial_width():
    late = 1e9
    np.testing.assert_allclose(
        late * sl.power_law_decay(late, [0.1, 1.0, 10.0], 2.0), 0.5, rtol=tol.DIFFUSION_INTEGRATION
    )


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_affine_flow_is_the_motion_of_its_particles(power):
    x = np.random.default_rng(0).standard_normal((20, 3))

    def pull(_t, flat):
        p = flat.reshape(x.shape)
        centred = p - p.mean(0)
        return (-0.4 * np.sqrt((centred**2).sum(1).mean()) ** power * centred).ravel()

    end = solve_ivp(pull, (0.0, 3.0), x.ravel(), **EXACT).y[:, -1].reshape(x.shape)
    np.testing.assert_allclose(sl.affine_flow(x, 3.0, 0.4, power), end, atol=tol.DIFFUSION_INTEGRATION)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_two_half_masses_of_the_granular_equation(power):
    flow = solve_ivp(
        lambda _t, x: -0.5 * (x - x[::-1]) * np.abs(x - x[::-1]) ** power, (0.0, 4.0), [-0.6, 0.6], **EXACT
    )
    assert sl.granular_two_point(4.0, 0.6, power) == pytest.approx(flow.y[1, -1], rel=tol.DIFFUSION_INTEGRATION)


def test_a_granular_cloud_tends_to_the_two_point_law():
    """t times the deviation tends to 1/2 like 1/2 - O(1/t), from a Gaussian start."""
    start = np.random.default_rng(1).standard_normal(60)

    def force(_t, x):
        difference = x[:, None] - x
        return -(difference * np.abs(difference)).mean(1)

    flow = solve_ivp(force, (0.0, 40.0), start, t_eval=[20.0, 40.0], rtol=1e-6, atol=1e-9)
    scaled = flow.t * flow.y.std(axis=0)
    assert scaled[0] < scaled[1] < 0.5
    assert scaled[1] == pytest.approx(40.0 * sl.granular_two_point(40.0, 0.5), abs=tol.GRANULAR_TRANSIENT)


def test_haff_rate_is_that_of_the_energies():
    """Uniform attention at N = infinity: M' = 2 alpha M/r, D constant, g = D/r^2."""
    gain, mean, energy = 0.7, 1.4, 0.6
    r = np.sqrt(mean + energy)
    g = energy / r**2
    rate = -energy / r**4 * (2.0 * gain * mean / r) / (2.0 * np.sqrt(g))
    assert sl.haff_rate(np.sqrt(g), r**2 * g, gain) == pytest.approx(rate, rel=tol.MEANFIELD_ROUNDING)


def test_haff_law_predicts_coherent_pre_norm_particles():
    """C is read from the particles at g = .01; relative error of the order of g."""
    tokens, beta, step = 32, 1.0, 0.05
    x = equiangular_tokens(tokens, 0.5)

    def velocity(x):
        theta = x / np.linalg.norm(x, axis=1, keepdims=True)
        return softmax(beta * theta @ theta.T) @ theta

    def spread(x):
        theta = x / np.linalg.norm(x, axis=1, keepdims=True)
        return 1.0 - (np.sum(theta.sum(0) ** 2) - tokens) / (tokens * (tokens - 1.0))

    started, elapsed = None, 0.0
    while elapsed < 40.0:
        x = x + step * velocity(x + 0.5 * step * velocity(x))
        if started is None and spread(x) < 0.01:
            started = np.sqrt(spread(x)), (x**2).sum(1).mean() * spread(x)
        elapsed += step if started else 0.0
    found = sl.power_law_decay(elapsed, started[0], 1.0 / np.sqrt(started[1]))
    assert found == pytest.approx(np.sqrt(spread(x)), rel=tol.HAFF_PARTICLES)


def test_random_value_rate_is_the_average_growth_of_one_layer():
    """V of independent entries N(0, 1/d) sends the mean token m to a Gaussian of variance |m|^2/d in each direction."""
    rng = np.random.default_rng(2)
    dim, draws, gain, energy = 32, 50_000, 1.0, 0.6
    mean = rng.standard_normal(dim)
    square_norm = mean @ mean + energy
    value_of_mean = np.linalg.norm(mean) / np.sqrt(dim) * rng.standard_normal((draws, dim))
    growth = ((mean + gain * value_of_mean / np.sqrt(square_norm)) ** 2).sum(1) - mean @ mean
    g = energy / square_norm
    change = -(g**2) / energy * growth
    error = change.std() / np.sqrt(draws)
    assert abs(sl.random_value_rate(g, energy, gain) - change.mean()) <= tol.SIGMAS * error
    assert error < tol.TYPICAL_SE * abs(change.mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.power_law_decay(-1.0, 1.0, 1.0), "t=-1.*blows up"),
        (lambda: sl.power_law_decay(1.0, 1.0, -1.0), "rate=-1"),
        (lambda: sl.power_law_decay(1.0, 1.0, 1.0, 0.0), "power=0.*exponential"),
        (lambda: sl.power_law_decay(1.0, np.inf, 1.0), "initial contains inf"),
        (lambda: sl.affine_flow([], 1.0, 1.0), "shape"),
        (lambda: sl.affine_flow([1.0, np.nan], 1.0, 1.0), "nan"),
        (lambda: sl.affine_flow([1.0, 2.0], [1, 2], 1.0), "t has shape"),
        (lambda: sl.power_law_decay(1.0, 1e3, 1.0, 1e3), "w leaves float64"),
        (lambda: sl.granular_two_point(1.0, 2.0, 1e3), "leaves float64"),
        (lambda: sl.granular_two_point(1.0, -1.0), "initial=-1"),
        (lambda: sl.haff_rate(1.5, 1.0), "width=1.5"),
        (lambda: sl.haff_rate(0.5, 0.0), "invariant=0"),
        (lambda: sl.random_value_rate(0.5, -1.0), "energy=-1"),
        (lambda: sl.random_value_rate(0.5, 1.0, -1.0), "gain=-1"),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
