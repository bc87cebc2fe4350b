"""Gaussian tokens: the precision law, the logistic law, anisotropy, the flow without LayerNorm, and where they stop."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import norm

from meanfield import gaussian_closure as gc
from tests import tolerances as tol
from tests.meanfield.dense import softmax

MANY = 1e12


def _cloud(seed=0, dim=4):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    return gc.GaussianCloud(rng.standard_normal(dim), 0.3 * root @ root.T)


def test_the_closure_solves_its_matrix_equations():
    """m' = (I + beta Sigma/r^2) m/r and Sigma' = 2 beta Sigma^2/r^3, integrated as matrices."""
    cloud, beta, dim = _cloud(), 2.0, 4

    def rates(_t, state):
        m, s = state[:dim], state[dim:].reshape(dim, dim)
        r = np.sqrt(m @ m + np.trace(s))
        return np.concatenate([(m + beta / r**2 * s @ m) / r, (2 * beta / r**3 * s @ s).ravel()])

    start = np.concatenate([cloud.mean, cloud.covariance.ravel()])
    exact = solve_ivp(rates, (0.0, 16.0), start, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    found = gc.pre_ln_closure(cloud, beta, [4.0, 16.0], MANY).isel(time=1)
    assert found["mean"].values == pytest.approx(exact[:dim], rel=tol.DYNAMICS_INTEGRATION)
    assert found["covariance"].values.ravel() == pytest.approx(exact[dim:], abs=tol.DYNAMICS_INTEGRATION)
    precision = np.linalg.inv(cloud.covariance) - np.linalg.inv(found["covariance"].values)
    shift = 2 * beta * float(found["clock"]) * np.eye(dim)
    assert precision == pytest.approx(shift, abs=tol.DYNAMICS_INVERSE)


@pytest.mark.parametrize("beta", [0.0, 3.0, 9.0])
def test_an_isotropic_spread_is_logistic_for_every_beta(beta):
    dim = 50
    cloud = gc.GaussianCloud(0.5 * np.eye(dim)[0], 0.75 / dim * np.eye(dim))
    found = gc.pre_ln_closure(cloud, beta, [0.5, 2.0, 6.0], MANY)
    predicted = gc.isotropic_spread(0.75, found["tau"].values)
    assert found["spread"].values == pytest.approx(predicted, rel=tol.DYNAMICS_INTEGRATION)
    assert gc.isotropic_spread(0.3, 0.0) == pytest.approx(0.3, rel=tol.MEANFIELD_ROUNDING)


def test_normalised_covariance_and_anisotropy():
    """d lambda/d tau and d ln(lambda_1/lambda_2)/d tau against difference quotients of the closure."""
    beta, cloud = 3.0, gc.GaussianCloud(np.array([0.6, 0.3, 0.1]), np.diag([0.3, 0.2, 0.05]))
    times = 1.0 + 1e-4 * np.array([-1.0, 0.0, 1.0])
    found = gc.pre_ln_closure(cloud, beta, times, MANY)
    share = found["covariance"].values[:, range(3), range(3)] / found["norm"].values[:, None] ** 2
    direction = found["mean"].values[1] / found["norm"].values[1]
    step = found["tau"].values[2] - found["tau"].values[0]
    velocity = gc.normalised_velocity(share[1], direction, beta)
    assert velocity == pytest.approx((share[2] - share[0]) / step, rel=tol.DYNAMICS_QUOTIENT)
    ratio = np.log(share[:, 0] / share[:, 1])
    rate = gc.anisotropy_rate(share[1, 0], share[1, 1], beta)
    assert rate == pytest.approx((ratio[2] - ratio[0]) / step, rel=tol.DYNAMICS_QUOTIENT)
    assert found["spread"].values[1] == pytest.approx(share[1].sum(), rel=tol.MEANFIELD_ROUNDING)
    variance = beta**2 * ((share[1] * direction**2).sum() + (share[1] ** 2).sum())
    assert found["logit_variance"].values[1] == pytest.approx(variance, rel=tol.MEANFIELD_ROUNDING)


def test_the_closure_against_particles():
    """600 Gaussian tokens, beta = 2, from their own moments: spread within 3 per cent at t = 4 (s^2 < ln(N)/2)."""
    rng = np.random.default_rng(4)
    dim, beta, step = 32, 2.0, 0.1
    x = np.sqrt(0.6 / dim) * rng.standard_normal((600, dim))
    x[:, 0] += np.sqrt(0.4)
    closure = gc.pre_ln_closure(gc.GaussianCloud(x.mean(0), np.cov(x.T, bias=True)), beta, [4.0], 600)

    def velocity(x):
        theta = x / np.linalg.norm(x, axis=1, keepdims=True)
        return softmax(beta * theta @ theta.T) @ theta

    for _ in range(40):
        x = x + step * velocity(x + step / 2 * velocity(x))
    spread = x.var(0).sum() / (x**2).sum(1).mean()
    assert float(closure["spread"][0]) == pytest.approx(spread, rel=tol.DYNAMICS_CLOSURE)


@pytest.mark.parametrize(("sign", "time"), [(-1.0, 3.0), (1.0, 0.5)])
def test_variance_without_layer_norm(sign, time):
    """1.7: quantile tokens in one dimension, beta = .4; V = -I decays as 1/(2 beta t), V = +I grows."""
    x = norm.ppf((np.arange(500) + 0.5) / 500)
    x /= x.std()
    step = 0.05
    for _ in range(round(time / step)):
        middle = x + step / 2 * sign * softmax(0.4 * np.outer(x, x)) @ x
        x = x + step * sign * softmax(0.4 * np.outer(middle, middle)) @ middle
    closed = gc.gaussian_variance(1.0, 0.4 * sign, time)
    assert closed == pytest.approx(1.0 / (1.0 - sign * 0.8 * time), rel=tol.MEANFIELD_ROUNDING)
    assert x.var() == pytest.approx(closed, rel=tol.DYNAMICS_QUANTILES)


def test_the_matrix_flow_has_the_scalar_law_along_common_axes():
    cloud = gc.GaussianCloud(np.array([1.0, 0.0]), np.diag([1.0, 0.5]))
    flow = gc.covariance_flow(cloud, np.diag([-1.0, 0.3]), np.diag([0.4, 0.6]), [1.0, 3.0])
    diagonal = flow["covariance"].values[:, [0, 1], [0, 1]]
    expected = [gc.gaussian_variance([1.0, 0.5], [-0.4, 0.18], t) for t in (1.0, 3.0)]
    assert diagonal == pytest.approx(np.array(expected), rel=tol.DYNAMICS_INTEGRATION)


def test_the_matrix_flow_is_the_covariance_of_affine_velocities():
    """Any V and A': tokens move by attention_output; d/dt of their covariance, from 7 tokens of exact moments."""
    rng = np.random.default_rng(2)
    dim, step = 3, 1e-5
    value, logits = rng.standard_normal((2, dim, dim)) / 2
    x = rng.standard_normal((7, dim))
    cloud = gc.GaussianCloud(x.mean(0), np.cov(x.T, bias=True))
    velocity = np.array([value @ gc.attention_output(cloud, logits, token) for token in x])
    moved = [np.cov((x + sign * step * velocity).T, bias=True) for sign in (1, -1)]
    flow = gc.covariance_flow(cloud, value, logits, [step])
    growth = (flow["covariance"].values[0] - cloud.covariance) / step
    assert growth == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=tol.DYNAMICS_QUOTIENT)
    assert (flow["mean"].values[0] - cloud.mean) / step == pytest.approx(velocity.mean(0), abs=tol.DYNAMICS_QUOTIENT)


def test_attention_on_a_gaussian_is_affine():
    """m + Sigma A' x against 2e5 keys, 4 standard errors of the self-normalised mean."""
    rng = np.random.default_rng(3)
    cloud, logits, query = _cloud(7, 3), np.diag([0.5, 0.3, 0.2]), np.array([0.6, -0.4, 0.5])
    keys = rng.multivariate_normal(cloud.mean, cloud.covariance, 200_000)
    weights = np.exp(keys @ logits @ query)
    weights /= weights.sum()
    mean = weights @ keys
    error = np.sqrt(weights**2 @ (keys - mean) ** 2)
    assert np.all(np.abs(mean - gc.attention_output(cloud, logits, query)) < 4.0 * error)


def test_growth_by_powers_is_no_blow_up():
    cloud = gc.GaussianCloud([0, 0], np.eye(2))
    flow = gc.covariance_flow(cloud, [[0, 1], [0, 0]], [[0, 0], [0, 1]], [0, 2e4])
    assert float(flow["covariance"][1, 0, 0]) == pytest.approx(1.0 + 4e8, rel=tol.DYNAMICS_INTEGRATION)


@pytest.mark.parametrize(
    ("mean", "covariance", "beta", "times"),
    [
        ([0.1, 0.0], np.eye(2), 3.0, [0.0, 10.0]),
        ([0.1, 0.0], np.eye(2), 3.0, [1000.0]),
        ([1.0], [[1.0]], 1e3, [0.0, 1e6]),
        ([1.0, 0.0], 0.3 * np.eye(2), 1e12, [1.0]),
    ],
)
def test_condensation_is_noticed_between_the_output_times(mean, covariance, beta, times):
    with pytest.raises(ValueError, match="rows condense"):
        gc.pre_ln_closure(gc.GaussianCloud(mean, covariance), beta, times, 1000)


def test_the_blow_up_is_named():
    cloud = gc.GaussianCloud(np.zeros(2), np.diag([1.0, 0.5]))
    assert gc.blowup_time(cloud, 0.4) == pytest.approx(1.25, rel=tol.MEANFIELD_ROUNDING)
    assert gc.blowup_time(cloud, -0.4) == np.inf
    assert gc.gaussian_variance(1.0, 0.4, 1.2499) > 1e3
    with pytest.raises(ValueError, match=r"time=1\.25 is not before the blow-up at 1\.25"):
        gc.gaussian_variance(1.0, 0.4, 1.25)
    with pytest.raises(ValueError, match=r"blows up at t=1\.25, before 2"):
        gc.covariance_flow(cloud, np.eye(2), 0.4 * np.eye(2), [2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gc.GaussianCloud(np.zeros(2), np.eye(3)), "disagree"),
        (lambda: gc.GaussianCloud(np.zeros(2), np.diag([1.0, -1.0])), "eigenvalue -1"),
        (lambda: gc.GaussianCloud(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        (lambda: gc.GaussianCloud(np.array([np.nan]), np.eye(1)), "mean contains nan"),
        (lambda: gc.pre_ln_closure(_cloud(), 30.0, [1.0], 100), r"exceeds ln\(N\)/2=2\.303.*simulate particles"),
        (lambda: gc.pre_ln_closure(_cloud(), np.inf, [1.0], 100), "beta contains inf"),
        (lambda: gc.pre_ln_closure(_cloud(), 1.0, [1.0], -5), "N=-5"),
        (lambda: gc.pre_ln_closure(_cloud(), 1.0, [2.0, 1.0], 100), "sort them"),
        (lambda: gc.pre_ln_closure(gc.GaussianCloud(np.zeros(1), np.zeros((1, 1))), 1.0, [1.0], 9), "origin"),
        (lambda: gc.isotropic_spread(1.5, 1.0), "spread=1.5"),
        (lambda: gc.anisotropy_rate(0.5, 2.0, 1.0), "share=2"),
        (lambda: gc.covariance_flow(_cloud(), np.eye(2), np.eye(4), [1.0]), "must be"),
        (lambda: gc.gaussian_variance(-1.0, 1.0, 1.0), "variance=-1"),
        (lambda: gc.GaussianCloud([], np.zeros((0, 0))), "d >= 1"),
        (lambda: gc.pre_ln_closure(_cloud(), [1.0], [1.0], 100), "beta has shape"),
        (lambda: gc.pre_ln_closure(gc.GaussianCloud([1e200], np.eye(1)), 1.0, [1.0], 100), "another unit"),
        (lambda: gc.blowup_time(_cloud(), [1.0]), "gain has shape"),
        (lambda: gc.normalised_velocity([1, 1], [1, 5], 2.0), "divide by r"),
        (lambda: gc.normalised_velocity([0.4, 0.4], [0.2], 2.0), "divide by r"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
