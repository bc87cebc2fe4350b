"""Exact solutions of diffusion equations in one dimension: Barenblatt, heat kernel, linear pull.

Source: docs/theory/diffusion.md, exact solutions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import TINY, Array, evaluated, finite, in_range, positive, scalar
from meanfield.derivations.barenblatt_profile import RESULT as BARENBLATT_PROFILE
from meanfield.derivations.barenblatt_radius import RESULT as BARENBLATT_RADIUS
from meanfield.derivations.heat_kernel import RESULT as HEAT_KERNEL
from meanfield.derivations.ornstein_uhlenbeck_variance import RESULT as ORNSTEIN_UHLENBECK_VARIANCE
from meanfield.derivations.pre_norm_diffusion_time import RESULT as PRE_NORM_DIFFUSION_TIME

_RESCALE = "measure lengths and times in other units"


def barenblatt_radius(
    t: ArrayLike, initial_radius: ArrayLike, *, m: float = 2.0, mass: float = 1.0, coefficient: float = 1.0
) -> Array:
    """Edge of the support of the Barenblatt solution of u_t = coefficient (u^m)_xx.

        R^{m+1} = R_0^{m+1} + (2 coefficient m (m + 1)/(m - 1)) (mass/B(1/2, m/(m - 1)))^{m-1} t

    Shapes broadcast; R in lengths, exact. For u_t = (u^2)_xx/2 at unit mass R^3 = R_0^3 + 9t/2.
    ValueError unless t >= 0, R_0 >= 0, m > 1, mass > 0, coefficient > 0 (below 0 the problem is ill-posed).
    """
    _porous(m, mass)
    ill_posed = "attraction (a negative one) is ill-posed: follow particles, meanfield.simulate"
    scalar("coefficient", coefficient, TINY, remedy=ill_posed)
    time = in_range("t", t, 0.0, remedy="the solution runs forward only")
    radius = in_range("initial_radius", initial_radius, 0.0, remedy="give the edge of the support at t = 0")
    return evaluated("R", BARENBLATT_RADIUS.function, time, radius, m, mass, coefficient, remedy=_RESCALE)


def barenblatt(x: ArrayLike, radius: ArrayLike, *, m: float = 2.0, mass: float = 1.0) -> Array:
    """Barenblatt density (mass/(R B(1/2, m/(m - 1)))) (1 - x^2/R^2)^{1/(m-1)} for |x| <= R, zero outside. Exact.

    Shapes of x and R broadcast. Its variance is R^2 (m - 1)/(3 m - 1): R^2/5 for m = 2.
    ValueError unless R > 0, m > 1, mass > 0.
    """
    _porous(m, mass)
    edge = positive("radius", radius, remedy="see barenblatt_radius")
    inside = np.clip(finite("x", x), -edge, edge)
    return evaluated("the density", BARENBLATT_PROFILE.function, inside, edge, m, mass, remedy=_RESCALE)


def gaussian(x: ArrayLike, variance: ArrayLike, *, centre: ArrayLike = 0.0, mass: float = 1.0) -> Array:
    """Gaussian density: the heat kernel at variance 2 int D dt, and the solution under a linear pull. Exact.

    Shapes broadcast. ValueError unless variance > 0 and mass > 0.
    """
    scalar("mass", mass, TINY, remedy="a density has mass")
    spread = positive("variance", variance, remedy="the kernel is a Dirac measure at variance 0")
    places = finite("x", x), finite("centre", centre)
    return evaluated("the density", HEAT_KERNEL.function, *places, spread, mass, remedy=_RESCALE)


def pre_norm_diffusion_time(t: ArrayLike, *, gain: float, contraction: float, initial_norm: float) -> Array:
    """Total diffusion of Pre-LN, int_0^t D dt with D = alpha kappa/r, r = r_0 + alpha t: kappa ln(1 + alpha t/r_0).

    A heat kernel has variance s_0 + 2 of it. alpha = gain (norm per layer), kappa = contraction (1 - second eigenvalue
    of attention, dimensionless), r_0 = initial_norm; t in layers. Exact for that r(t), which holds once tokens align.
    ValueError unless t >= 0 and alpha, kappa, r_0 > 0.
    """
    for name, value in (("gain", gain), ("contraction", contraction), ("initial_norm", initial_norm)):
        scalar(name, value, TINY, remedy="D = gain contraction/r must be a diffusivity")
    time = in_range("t", t, 0.0, remedy="depth is not negative")
    law = PRE_NORM_DIFFUSION_TIME.function
    return evaluated("int D dt", law, time, gain, contraction, initial_norm, remedy=_RESCALE)


def ornstein_uhlenbeck_variance(t: ArrayLike, initial: ArrayLike, *, diffusivity: float, pull: float) -> Array:
    """Variance D/theta + (s_0 - D/theta) e^{-2 theta t} of the Gaussian solution of u_t = D u_xx + theta (x u)_x.

    Exact; its centre is c_0 e^{-theta t}. ValueError unless t >= 0, s_0 >= 0, D >= 0 and theta > 0.
    """
    scalar("pull", pull, TINY, remedy="without a pull the variance is s_0 + 2 D t")
    time = in_range("t", t, 0.0, remedy="the solution runs forward only")
    start = in_range("initial", initial, 0.0, remedy="a variance is not negative")
    scalar("diffusivity", diffusivity, 0.0, remedy="backward diffusion is ill-posed: meanfield.simulate")
    law = ORNSTEIN_UHLENBECK_VARIANCE.function
    return evaluated("the variance", law, time, start, diffusivity, pull, remedy=_RESCALE)


def _porous(m: float, mass: float) -> None:
    if scalar("m", m, remedy="give the power of the porous medium") <= 1.0:
        raise ValueError(f"m={m} is not above 1; m = 1 is the heat equation (gaussian), m < 1 fast diffusion")
    scalar("mass", mass, TINY, remedy="a density has mass")
