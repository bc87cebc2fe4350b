"""The mean shift (attention with a Gaussian kernel, V = I) in feature space: exact laws and narrow-kernel limits.

    x_i' = sum_j A_ij x_j - x_i,   A_ij ~ exp(-beta |x_i - x_j|^2/2)

beta is the inverse variance of the kernel; time in units of layers over the residual gain.
Source: docs/theory/diffusion.md, sense iii.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import TINY, Array, evaluated, finite, in_range, positive, scalar
from meanfield.derivations.kernel_eigenvalue import RESULT as KERNEL_EIGENVALUE
from meanfield.derivations.local_velocity import RESULT as LOCAL_VELOCITY
from meanfield.derivations.mean_shift_growth import RESULT as MEAN_SHIFT_GROWTH
from meanfield.derivations.mean_shift_variance import RESULT as MEAN_SHIFT_VARIANCE
from meanfield.derivations.sinkhorn_coefficient import RESULT as SINKHORN_COEFFICIENT
from meanfield.diffusion import forward_diffusivity

Normalisation = Literal["none", "softmax", "sinkhorn"]

_POWERS = {"none": (0.0, 0.0), "softmax": (1.0, 0.0), "sinkhorn": (0.5, 0.5)}
"""Powers of the density by which the weights are divided, at the query and at the key."""

_RESCALE = "measure lengths in another unit: only beta s matters"


def mean_shift_variance(t: ArrayLike, initial: ArrayLike, beta: ArrayLike) -> Array:
    """Variance W(beta s_0 e^{beta s_0 - 2t})/beta of a Gaussian blob along each axis, W the Lambert function.

    It solves s' = -2s/(1 + beta s): a loss of 2t/beta while beta s >> 1, then e^{-2t} with the prefactor s_0
    e^{beta s_0}. Evaluated as the Wright omega function of ln(beta s_0) + beta s_0 - 2t, so it cannot overflow. Shapes
    broadcast. Exact at every beta in the limit N -> infinity; at large beta s_0 a sampled cloud breaks into clusters
    first (`modulation_growth`): beta = 50, s_0 = 1, t = 15: law .417, 1500 particles .467, 200 .58.
    ValueError unless t >= 0, s_0 > 0, beta > 0.
    """
    time = in_range("t", t, 0.0, remedy="backward in time, multiply instead: the blob spreads")
    start = _variance("initial", initial)
    return evaluated("the variance", MEAN_SHIFT_VARIANCE.function, time, _beta(beta), start, remedy=_RESCALE)


def modulation_growth(wave_number: ArrayLike, beta: ArrayLike) -> Array:
    """Growth rate (k^2/beta) e^{-k^2/(2 beta)} of a modulation cos(kx) of a uniform cloud under the mean shift.

    Per unit time. Backward heat (k^2/beta, unbounded: ill-posed) as far as the kernel resolves; the largest rate is
    2/e at k = sqrt(2 beta). Linear in the modulation, N = infinity. ValueError unless k >= 0, beta > 0.
    """
    k = in_range("wave_number", wave_number, 0.0, remedy="give its absolute value")
    return evaluated("the rate", MEAN_SHIFT_GROWTH.function, k, _beta(beta), remedy=_RESCALE)


def local_velocity(density: ArrayLike, gradient: ArrayLike, beta: ArrayLike, normalisation: Normalisation) -> Array:
    """Velocity of the mean shift in the limit of a narrow kernel of unit mass, V = I; -1 times it for V = -I.

        none: grad rho/beta;   softmax: grad ln rho/beta;   sinkhorn: grad ln rho/(2 beta)

    Shapes broadcast; leading order in 1/beta. ValueError unless rho > 0, beta > 0, or the normalisation is unknown.
    """
    left, right = _powers(normalisation)
    rho = positive("density", density, remedy="the limit holds inside the support")
    slope = finite("gradient", gradient)
    law = LOCAL_VELOCITY.function
    return evaluated("the velocity", law, rho, slope, _beta(beta), left, right, remedy="rescale density or beta")


def local_diffusivity(density: ArrayLike, beta: float, normalisation: Normalisation, value: float = -1.0) -> Array:
    """D(rho) of d_t rho = div(D grad rho), the narrow-kernel limit of attention with V = value I.

        none: -value rho/beta (porous medium);   softmax: -value/beta (heat);   sinkhorn: -value/(2 beta)

    For `solve_diffusion`. Leading order in 1/beta. ValueError for value > 0 (attraction: backward diffusion, ill-posed)
    and as in `local_velocity`.
    """
    rho = in_range("density", density, 0.0, remedy="a density is not negative")
    flux = local_velocity(np.maximum(rho, TINY), np.maximum(rho, TINY), beta, normalisation)
    return forward_diffusivity("D", -scalar("value", value, remedy="V = value I") * flux)


def softmax_coefficient(beta: ArrayLike, variance: ArrayLike) -> Array:
    """E[y|x] = a x, a = beta s/(1 + beta s), under softmax attention between Gaussian tokens of variance s. Exact.

    The eigenvalues of the attention operator are a^n. ValueError unless beta, s > 0.
    """
    product = evaluated("beta s", np.multiply, _beta(beta), _variance("variance", variance), remedy=_RESCALE)
    return np.asarray(KERNEL_EIGENVALUE.function(product))


def sinkhorn_coefficient(beta: ArrayLike, variance: ArrayLike) -> Array:
    """E[y|x] = a x, a = sqrt(1 + (2 beta s)^{-2}) - (2 beta s)^{-1}, under doubly stochastic (Sinkhorn) attention.

    Gaussian tokens of variance s; eigenvalues a^n; 1 - a -> 1/(2 beta s), half of softmax. Exact at N = infinity.
    ValueError unless beta, s > 0. Source: kernel limit in Sander et al. 2110.11773; derivation here.
    """
    s = _variance("variance", variance)
    return evaluated("a", SINKHORN_COEFFICIENT.function, _beta(beta), s, remedy=_RESCALE)


def _powers(normalisation: str) -> tuple[float, float]:
    if not isinstance(normalisation, str) or normalisation not in _POWERS:
        raise ValueError(f"normalisation={normalisation!r} is unknown; choose one of {', '.join(_POWERS)}")
    return _POWERS[normalisation]


def _beta(value: ArrayLike) -> Array:
    return positive("beta", value, remedy="beta is the inverse variance of the kernel")


def _variance(name: str, value: ArrayLike) -> Array:
    return positive(name, value, remedy="a variance is positive")
