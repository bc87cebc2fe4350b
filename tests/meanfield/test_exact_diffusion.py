"""Exact solutions: masses, variances and equations, by quadrature and integration."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from meanfield import exact_diffusion as ed
from tests import tolerances as tol


@pytest.mark.parametrize("m", [1.3, 2.0, 5.0])
def test_barenblatt_has_its_mass_and_variance(m):
    radius = ed.barenblatt_radius(0.7, 0.5, m=m, mass=3.0, coefficient=0.2)
    mass = quad(lambda x: float(ed.barenblatt(x, radius, m=m, mass=3.0)), -radius, radius)[0]
    moment = quad(lambda x: x**2 * float(ed.barenblatt(x, radius, m=m, mass=3.0)), -radius, radius)[0]
    assert mass == pytest.approx(3.0, rel=tol.DIFFUSION_INTEGRATION)
    assert moment / mass == pytest.approx(radius**2 * (m - 1.0) / (3.0 * m - 1.0), rel=tol.DIFFUSION_INTEGRATION)
    assert ed.barenblatt([-1.01 * radius, 1.01 * radius], radius, m=m).tolist() == [0.0, 0.0]


def test_the_radius_of_unnormalised_repulsive_attention():
    """u_t = (u^2)_xx/2 at unit mass: R^3 = R_0^3 + 9t/2."""
    t = np.array([0.0, 0.16, 3.0])
    np.testing.assert_allclose(ed.barenblatt_radius(t, 1.0, coefficient=0.5) ** 3, 1.0 + 4.5 * t, rtol=1e-14)


@pytest.mark.parametrize("m", [1.5, 2.0, 4.0])
def test_barenblatt_solves_its_equation(m):
    step, t, x = 1e-4, 0.3, np.array([0.0, 0.2, 0.45])

    def u(x, t):
        return ed.barenblatt(x, ed.barenblatt_radius(t, 0.4, m=m, mass=0.8, coefficient=0.6), m=m, mass=0.8)

    rate = (u(x, t + step) - u(x, t - step)) / (2.0 * step)
    space = 0.6 * (u(x + step, t) ** m - 2.0 * u(x, t) ** m + u(x - step, t) ** m) / step**2
    np.testing.assert_allclose(rate, space, rtol=tol.DIFFUSION_DIFFERENCES, atol=tol.DIFFUSION_DIFFERENCES)


def test_gaussian_solves_the_heat_equation_of_pre_norm():
    step, t, x = 1e-4, 0.6, np.array([-1.0, 0.1, 0.8])
    pre_norm = {"gain": 0.7, "contraction": 0.4, "initial_norm": 1.3}

    def u(x, t):
        return ed.gaussian(x, 0.3 + 2.0 * ed.pre_norm_diffusion_time(t, **pre_norm), centre=0.1, mass=2.0)

    rate = (u(x, t + step) - u(x, t - step)) / (2.0 * step)
    diffusivity = 0.7 * 0.4 / (1.3 + 0.7 * t)
    space = diffusivity * (u(x + step, t) - 2.0 * u(x, t) + u(x - step, t)) / step**2
    np.testing.assert_allclose(rate, space, rtol=tol.DIFFUSION_DIFFERENCES, atol=tol.DIFFUSION_DIFFERENCES)
    assert quad(lambda x: float(u(x, t)), -20, 20)[0] == pytest.approx(2.0, rel=tol.DIFFUSION_INTEGRATION)


def test_total_diffusion_is_the_integral_of_the_diffusivity():
    total = quad(lambda s: 0.5 * 0.8 / (2.0 + 0.5 * s), 0.0, 7.0)[0]
    found = ed.pre_norm_diffusion_time(7.0, gain=0.5, contraction=0.8, initial_norm=2.0)
    assert found == pytest.approx(total, rel=tol.DIFFUSION_INTEGRATION)


def test_variance_under_a_pull():
    flow = solve_ivp(lambda _t, s: 2.0 * 0.3 - 2.0 * 1.7 * s, (0.0, 0.9), [2.0], rtol=1e-11, atol=1e-13)
    found = ed.ornstein_uhlenbeck_variance(0.9, 2.0, diffusivity=0.3, pull=1.7)
    assert found == pytest.approx(flow.y[0, -1], rel=tol.DIFFUSION_INTEGRATION)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ed.barenblatt_radius(-1.0, 1.0), "t=-1"),
        (lambda: ed.barenblatt_radius(1.0, 1.0, m=1.0), "m=1.0 is not above 1"),
        (lambda: ed.barenblatt_radius(1.0, 1.0, m=np.nan), "m contains nan"),
        (lambda: ed.barenblatt_radius(1.0, 1.0, coefficient=-0.5), "coefficient=-0.5.*ill-posed.*simulate"),
        (lambda: ed.barenblatt(0.0, 0.0), "radius=0"),
        (lambda: ed.barenblatt(0.0, 1e-200), "leaves float64"),
        (lambda: ed.barenblatt(0.0, 1.0, m=[2.0]), "m has shape"),
        (lambda: ed.barenblatt(0.0, 1.0, mass=[2.0]), "mass has shape"),
        (
            lambda: ed.pre_norm_diffusion_time(1.0, gain=1.0, contraction=[1.0], initial_norm=1.0),
            "contraction has shape",
        ),
        (lambda: ed.ornstein_uhlenbeck_variance(1.0, 1.0, diffusivity=[1.0], pull=1.0), "diffusivity has shape"),
        (lambda: ed.ornstein_uhlenbeck_variance(1.0, 1.0, diffusivity=1.0, pull=[1.0]), "pull has shape"),
        (lambda: ed.barenblatt(0.0, 1.0, mass=-1.0), "mass=-1"),
        (lambda: ed.gaussian(np.nan, 1.0), "x contains nan"),
        (lambda: ed.gaussian(0.0, 0.0), "variance=0"),
        (lambda: ed.pre_norm_diffusion_time(1.0, gain=0.0, contraction=1.0, initial_norm=1.0), "gain=0"),
        (lambda: ed.ornstein_uhlenbeck_variance(1.0, 1.0, diffusivity=-1.0, pull=1.0), "diffusivity=-1"),
        (lambda: ed.ornstein_uhlenbeck_variance(1.0, 1.0, diffusivity=1.0, pull=0.0), "pull=0"),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
