"""Exact solutions of diffusion equations in one dimension: Barenblatt, heat kernel, linear pull.

Source: docs/theory/diffusion.md, exact solutions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, in_range
from meanfield.derivations.barenblatt_profile import RESULT as BARENBLATT_PROFILE
from meanfield.derivations.barenblatt_radius import RESULT as BARENBLATT_RADIUS
from meanfield.derivations.heat_kernel import RESULT as HEAT_KERNEL
from meanfield.derivations.ornstein_uhlenbeck_variance import RESULT as ORNSTEIN_UHLENBECK_VARIANCE
from meanfield.derivations.pre_norm_diffusion_time import RESULT as PRE_NORM_DIFFUSION_TIME

_TINY = np.finfo(float).tiny
"""The lower end of the positive numbers."""


def barenblatt_radius(
    t: ArrayLike, initial_radius: ArrayLike, *, m: float = 2.0, mass: float = 1.0, coefficient: float = 1.0
) -> Array:
    """Edge of the support of the Barenblatt solution of u_t = coefficient (u^m)_xx.

        R^{m+1} = R_0^{m+1} + (2 coefficient m (m + 1)/(m - 1)) (mass/B(1/2, m/(m - 1)))^{m-1} t

    Shapes broadcast; R in lengths, exact. For u_t = (u^2)_xx/2 at unit mass R^3 = R_0^3 + 9t/2.
    ValueError unless t >= 0, R_0 >= 0, m > 1, mass > 0, coefficient > 0 (below 0 the problem is ill-posed).
    """
    _porous(m, mass)
    in_range(
        "coefficient",
        coefficient,
        _TINY,
        remedy="attraction (a negative one) is ill-posed: follow particles, meanfield.simulate",
    )
    time = in_range("t", t, 0.0, remedy="the solution runs forward only")
    radius = in_range("initial_radius", initial_radius, 0.0, remedy="give the edge of the support at t = 0")
    return np.asarray(BARENBLATT_RADIUS.function(time, radius, m, mass, coefficient))


def barenblatt(x: ArrayLike, radius: ArrayLike, *, m: float = 2.0, mass: float = 1.0) -> Array:
    """Barenblatt density (mass/(R B(1/2, m/(m - 1)))) (1 - x^2/R^2)^{1/(m-1)} for |x| <= R, zero outside. Exact.

    Shapes of x and R broadcast. Its variance is R^2 (m - 1)/(3 m - 1): R^2/5 for m = 2.
    ValueError unless R > 0, m > 1, mass > 0.
    """
    _porous(m, mass)
    edge = in_range("radius", radius, _TINY, remedy="see barenblatt_radius")
    return np.asarray(BARENBLATT_PROFILE.function(np.clip(finite("x", x), -edge, edge), edge, m, mass))


def gaussian(x: ArrayLike, variance: ArrayLike, *, centre: ArrayLike = 0.0, mass: float = 1.0) -> Array:
    """Gaussian density: the heat kernel at variance 2 int D dt, and the solution under a linear pull. Exact.

    Shapes broadcast. ValueError unless variance > 0 and mass > 0.
    """
    in_range("mass", mass, _TINY, remedy="a density has mass")
    spread = in_range("variance", variance, _TINY, remedy="the kernel is a Dirac measure at variance 0")
    return np.asarray(HEAT_KERNEL.function(finite("x", x), finite("centre", centre), spread, mass))


def pre_norm_diffusion_time(t: ArrayLike, *, gain: float, contraction: float, initial_norm: float) -> Array:
    """Total diffusion of Pre-LN, int_0^t D dt with D = alpha kappa/r, r = r_0 + alpha t: kappa ln(1 + alpha t/r_0).

    A heat kernel has variance s_0 + 2 of it. alpha = gain (norm per layer), kappa = contraction (1 - second eigenvalue
    of attention, dimensionless), r_0 = initial_norm; t in layers. Exact for that r(t), which holds once tokens align.
    ValueError unless t >= 0 and alpha, kappa, r_0 > 0.
    """
    for name, value in (("gain", gain), ("contraction", contraction), ("initial_norm", initial_norm)):
        in_range(name, value, _TINY, remedy="D = gain contraction/r must be a diffusivity")
    time = in_range("t", t, 0.0, remedy="depth is not negative")
    return np.asarray(PRE_NORM_DIFFUSION_TIME.function(time, gain, contraction, initial_norm))


def ornstein_uhlenbeck_variance(t: ArrayLike, initial: ArrayLike, *, diffusivity: float, pull: float) -> Array:
    """Variance D/theta + (s_0 - D/theta) e^{-2 theta t} of the Gaussian solution of u_t = D u_xx + theta (x u)_x.

    Exact; its centre is c_0 e^{-theta t}. ValueError unless t >= 0, s_0 >= 0, D >= 0 and theta > 0.
    """
    in_range("pull", pull, _TINY, remedy="without a pull the variance is s_0 + 2 D t")
    time = in_range("t", t, 0.0, remedy="the solution runs forward only")
    start = in_range("initial", initial, 0.0, remedy="a variance is not negative")
    in_range("diffusivity", diffusivity, 0.0, remedy="backward diffusion is ill-posed: meanfield.simulate")
    return np.asarray(ORNSTEIN_UHLENBECK_VARIANCE.function(time, start, diffusivity, pull))


def _porous(m: float, mass: float) -> None:
    if not 1.0 < m < np.inf:
        raise ValueError(f"m={m} is not above 1; m = 1 is the heat equation (gaussian), m < 1 fast diffusion")
    in_range("mass", mass, _TINY, remedy="a density has mass")
