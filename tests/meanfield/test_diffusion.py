"""The finite-volume solver: conservation, positivity, and its orders against exact solutions."""

from dataclasses import replace

import numpy as np
import pytest

from meanfield.diffusion import DiffusionConfig, _Equation, _tr_bdf2, forward_diffusivity, solve_diffusion
from meanfield.exact_diffusion import (
    barenblatt,
    barenblatt_radius,
    gaussian,
    ornstein_uhlenbeck_variance,
    pre_norm_diffusion_time,
)
from tests import tolerances as tol

METHODS = ("backward-euler", "tr-bdf2")


def cells(count, half_width):
    """Centres of `count` cells on [-half_width, half_width]."""
    width = 2.0 * half_width / count
    return -half_width + width * (np.arange(count) + 0.5)


def cell_means(function, x, samples=100):
    """Means of a function over cells, by the midpoint rule."""
    inside = ((np.arange(samples) + 0.5) / samples - 0.5) * (x[1] - x[0])
    return function(x[:, None] + inside).mean(axis=1)


def porous(m):
    return lambda u, _t: m * u ** (m - 1.0)


def fading(_u, t):
    """D = alpha kappa/r of Pre-LN with alpha = 1, kappa = .4, r = .5 + t."""
    return 0.4 / (0.5 + t)


PROBLEMS = {
    "heat, D -> 0 in time": (fading, None),
    "porous medium": (porous(2.0), None),
    "porous medium with a pull": (porous(3.0), lambda x, _t: x),
    "degenerate everywhere: transport": (lambda _u, _t: 0.0, lambda x, _t: np.sin(x)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_mass_is_kept_and_nothing_is_negative_over_many_steps(problem, method):
    x = cells(80, 3.0)
    start = np.where(np.abs(x) < 0.5, 1.0 + 0.5 * np.sin(9.0 * x), 0.0)
    times = np.linspace(0.0, 2.0, 5)
    ds = solve_diffusion(x, start, times, *PROBLEMS[problem], config=DiffusionConfig(0.02, method))
    assert float(ds.density.min()) >= 0.0
    np.testing.assert_allclose(ds.mass, ds.mass[0], rtol=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize("m", [1.0, 1.5, 2.0, 4.0])
def test_steps_of_a_hundred_explicit_limits_stay_positive_and_bounded(m):
    x = cells(200, 3.0)
    start = cell_means(lambda y: barenblatt(y, 1.0), x)
    limit = (x[1] - x[0]) ** 2 / (2.0 * m * start.max() ** (m - 1.0))
    config = DiffusionConfig(100.0 * limit)
    ds = solve_diffusion(x, start, np.linspace(0.0, 20.0 * config.step, 21), porous(m), config=config)
    assert float(ds.density.min()) >= 0.0
    assert np.all(np.diff(ds.density.max("x")) <= 0.0), "the maximum principle"
    np.testing.assert_allclose(ds.mass, ds.mass[0], rtol=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(("method", "order"), [("backward-euler", 1.0), ("tr-bdf2", 2.0)])
def test_order_in_time(method, order):
    """A cosine is an eigenvector of the discrete operator, so the semi-discrete solution is known."""
    count = 32
    x = (np.arange(count) + 0.5) / count
    eigenvalue = (2.0 - 2.0 * np.cos(np.pi / count)) * count**2
    decay = np.exp(-eigenvalue * pre_norm_diffusion_time(1.0, gain=1.0, contraction=0.4, initial_norm=0.5))
    wave = np.cos(np.pi * x)
    errors = []
    for steps in (32, 64):
        config = DiffusionConfig(1.0 / steps, method)
        ds = solve_diffusion(x, 1.0 + 0.5 * wave, [0.0, 1.0], fading, config=config)
        errors.append(np.abs(ds.density[-1].values - 1.0 - 0.5 * decay * wave).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=tol.DIFFUSION_ORDER)


def test_one_backward_euler_step_is_the_resolvent_at_its_end():
    count, step = 32, 0.3
    x = (np.arange(count) + 0.5) / count
    eigenvalue = (2.0 - 2.0 * np.cos(np.pi / count)) * count**2
    factor = 1.0 / (1.0 + step * eigenvalue * fading(None, step))
    wave = np.cos(np.pi * x)
    ds = solve_diffusion(x, 1.0 + 0.5 * wave, [0.0, step], fading, config=DiffusionConfig(step))
    np.testing.assert_allclose(ds.density[-1], 1.0 + 0.5 * factor * wave, rtol=tol.MEANFIELD_ROUNDING)


def l1_error(x, start, end, time, diffusivity, drift=None):
    config = DiffusionConfig(0.2 * (x[1] - x[0]), "tr-bdf2")
    ds = solve_diffusion(x, cell_means(start, x), [0.0, time], diffusivity, drift, config=config)
    return np.abs(ds.density[-1].values - cell_means(end, x)).sum() * (x[1] - x[0])


def test_order_in_space_of_the_heat_kernel_with_fading_diffusivity():
    spread = 0.1 + 2.0 * pre_norm_diffusion_time(1.0, gain=1.0, contraction=0.4, initial_norm=0.5)
    errors = [
        l1_error(cells(n, 7.0), lambda y: gaussian(y, 0.1), lambda y: gaussian(y, spread), 1.0, fading)
        for n in (100, 200)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=tol.DIFFUSION_ORDER)


def test_order_in_space_with_a_linear_pull():
    spread = ornstein_uhlenbeck_variance(1.0, 0.3, diffusivity=0.5, pull=1.0)
    errors = [
        l1_error(
            cells(n, 5.0),
            lambda y: gaussian(y, 0.3, centre=1.0),
            lambda y: gaussian(y, spread, centre=np.exp(-1.0)),
            1.0,
            lambda _u, _t: 0.5,
            lambda x, _t: x,
        )
        for n in (50, 100)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=tol.DIFFUSION_ORDER)


@pytest.mark.parametrize("m", [1.5, 2.0, 3.0])
def test_order_in_space_at_a_free_boundary(m):
    """Over two doublings: the error depends on where in a cell the edge lies."""
    radius = barenblatt_radius(0.2, 1.0, m=m)
    errors = [
        l1_error(cells(n, 2.0), lambda y: barenblatt(y, 1.0, m=m), lambda y: barenblatt(y, radius, m=m), 0.2, porous(m))
        for n in (100, 400)
    ]
    declared = min(2.0, 1.0 + 1.0 / (m - 1.0))
    assert np.log2(errors[0] / errors[1]) / 2.0 >= declared - tol.DIFFUSION_EDGE_ORDER


def test_the_free_boundary_is_where_barenblatt_puts_it():
    x = cells(200, 2.0)
    ds = solve_diffusion(
        x,
        cell_means(lambda y: barenblatt(y, 1.0), x),
        np.linspace(0.0, 0.5, 6),
        lambda u, _t: u,
        config=DiffusionConfig(0.005),
    )
    radius = barenblatt_radius(ds.time.values, 1.0, coefficient=0.5)
    edge = [np.abs(x[u > tol.DIFFUSION_EDGE_LEVEL * u.max()]).max() for u in ds.density.values]
    np.testing.assert_allclose(edge, radius, atol=2.0 * (x[1] - x[0]))
    np.testing.assert_allclose(ds.variance, radius**2 / 5.0, rtol=tol.DIFFUSION_VARIANCE)


def test_transport_alone_moves_the_mean_exactly():
    x = cells(200, 10.0)
    ds = solve_diffusion(
        x,
        np.exp(-4.0 * (x - 1.0) ** 2),
        [0.0, 1.0],
        lambda _u, _t: 0.0,
        lambda _x, _t: 1.5,
        config=DiffusionConfig(0.1),
    )
    assert float(ds["mean"][1] - ds["mean"][0]) == pytest.approx(-1.5, rel=tol.DIFFUSION_TAIL)


def test_the_jacobian_is_that_of_the_rate():
    x = cells(8, 1.0)
    u, step = 1.0 + x**2, 1e-6
    equation = _Equation(x, lambda v, _t: v**2, lambda y, _t: 2.0 * y)
    bands = equation.jacobian(u, 0.0)
    dense = np.diag(bands[1]) + np.diag(bands[0, 1:], 1) + np.diag(bands[2, :-1], -1)
    moved = [(equation.rate(u + e, 0.0) - equation.rate(u - e, 0.0)) / (2.0 * step) for e in step * np.eye(8)]
    np.testing.assert_allclose(dense, np.transpose(moved), atol=tol.DIFFUSION_DIFFERENCES)


def test_the_discrete_equilibrium_of_a_pull_is_kept():
    x = cells(60, 3.0)
    faces = 0.5 * (x[1:] + x[:-1])
    ratio = np.exp(-faces * (x[1] - x[0]) / 0.5)
    equilibrium = np.concatenate([[1.0], np.cumprod(ratio)])
    equilibrium /= equilibrium.max()
    ds = solve_diffusion(x, equilibrium, [0.0, 5.0], lambda _u, _t: 0.5, lambda y, _t: y, config=DiffusionConfig(1.0))
    np.testing.assert_allclose(ds.density[1], equilibrium, atol=tol.MEANFIELD_ROUNDING)


def test_a_second_order_step_is_halved_until_it_is_positive():
    x = cells(41, 1.0)
    spike = np.where(np.abs(x) < 1e-9, 1.0, 0.0)
    step = 30.0 * (x[1] - x[0]) ** 2
    ds = solve_diffusion(x, spike, [0.0, step], lambda _u, _t: 1.0, config=DiffusionConfig(step, "tr-bdf2"))
    assert float(ds.density.min()) >= 0.0
    with pytest.raises(ValueError, match=r"no non-negative solution.*backward-euler"):
        solve_diffusion(x, spike, [0.0, step], lambda _u, _t: 1.0, config=DiffusionConfig(step, "tr-bdf2", halvings=1))


@pytest.mark.parametrize(
    "backward", [lambda _u, _t: -1.0, lambda u, _t: -u, lambda u, _t: u - 0.5, lambda _u, t: 0.5 - t]
)
def test_backward_diffusion_is_refused_with_the_reason_and_the_remedy(backward):
    x = cells(50, 2.0)
    start = cell_means(lambda y: barenblatt(y, 1.0), x)
    with pytest.raises(ValueError, match=r"D=-.*ill-posed.*Hadamard.*meanfield\.simulate"):
        solve_diffusion(x, start, [0.0, 1.0], backward, config=DiffusionConfig(0.1))


def test_forward_diffusivity_passes_zero_and_refuses_nan():
    assert forward_diffusivity("D", [0.0, 1.0]).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="D contains nan"):
        forward_diffusivity("D", np.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [0.0, 1.0, 3.0]}, "spacings 1 to 2"),
        ({"x": [2.0, 1.0, 0.0]}, "spacings"),
        ({"x": [0.0, 1.0]}, "equal lengths"),
        ({"initial": [0.0, -1.0, 1.0]}, "initial=-1"),
        ({"initial": [0.0, np.nan, 1.0]}, "nan"),
        ({"initial": [0.0, 0.0, 0.0]}, "0 everywhere"),
        ({"times": [0.0, 0.0]}, "do not increase"),
        ({"drift": lambda x, _t: np.full_like(x, np.inf)}, "drift contains inf"),
        ({"drift": lambda _x, _t: np.ones(5)}, r"drift has shape \(5,\)"),
        ({"drift": 1.0}, "drift=1.0 is not a function"),
        ({"x": [0.0, 1e-200, 2e-200]}, "spacing of x"),
        ({"initial": [0.0, 5e-324, 0.0]}, "largest initial value"),
    ],
)
def test_invalid_problems_are_named(change, message):
    problem = {"x": [0.0, 1.0, 2.0], "initial": [0.0, 1.0, 0.0], "times": [0.0, 1.0]} | change
    with pytest.raises(ValueError, match=message):
        solve_diffusion(diffusivity=lambda _u, _t: 1.0, config=DiffusionConfig(0.1), **problem)


@pytest.mark.parametrize(
    ("diffusivity", "step", "message"),
    [
        (1.0, 0.1, "diffusivity=1.0 is not a function"),
        (lambda _u, _t: np.ones(7), 0.1, r"D has shape \(7,\)"),
        (lambda _u, _t: 1e20, 0.05, "Newton's method did not converge.*below 1e15"),
        (lambda _u, _t: 1.0, 1e20, "Newton's method did not converge"),
        (lambda u, _t: 1e3 * np.sin(1e6 * u) ** 2, 0.1, "Newton's method did not converge"),
    ],
)
def test_failures_of_newtons_method_are_named(diffusivity, step, message):
    x = cells(21, 1.0)
    with pytest.raises(ValueError, match=message):
        solve_diffusion(
            x, np.exp(-(x**2)), [0.0, step], diffusivity, config=DiffusionConfig(step, iterations=2, halvings=2)
        )


def test_second_order_steps_are_positive_up_to_their_bound_without_drift():
    """(2 - sqrt 2) step = h^2/D: no step is halved; with |b| h = 5 D a halving is needed and keeps u >= 0."""
    x = cells(41, 1.0)
    spike, width = np.where(np.abs(x) < 1e-9, 1.0, 0.0), x[1] - x[0]
    config = DiffusionConfig(width**2 / (2.0 - np.sqrt(2.0)), "tr-bdf2", halvings=1)
    for drift in (None, lambda _x, _t: 5.0 / width):
        ds = solve_diffusion(
            x, spike, [0.0, config.step], lambda _u, _t: 1.0, drift, config=replace(config, halvings=9)
        )
        assert float(ds.density.min()) >= 0.0
    bare = _tr_bdf2(_Equation(x, lambda _u, _t: 1.0, None), spike, 0.0, config.step, config)
    drifting = _tr_bdf2(_Equation(x, lambda _u, _t: 1.0, drift), spike, 0.0, config.step, config)
    assert bare.min() >= -tol.MEANFIELD_ROUNDING and drifting.min() < -0.01


@pytest.mark.parametrize(
    "change",
    [
        {"step": 0.0},
        {"step": np.nan},
        {"method": "euler"},
        {"tolerance": -1.0},
        {"halvings": 0},
        {"halvings": 2.5},
        {"iterations": 2.5},
    ],
)
def test_invalid_configurations_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        DiffusionConfig(**({"step": 0.1} | change))


def test_the_dataset_carries_names_and_units():
    ds = solve_diffusion([0.0, 1.0, 2.0], [0.0, 1.0, 0.0], [0.0, 1.0], lambda _u, _t: 1.0, config=DiffusionConfig(0.5))
    assert set(ds.data_vars) == {"density", "mass", "mean", "variance"}
    assert all({"long_name", "units"} <= set(ds[name].attrs) for name in ds.variables)
    assert ds.attrs == {"method": "backward-euler", "step": 0.5}
