"""Scalar laws near collapse: one number, the width of the cloud, with a pull that fades as a power of it.

Coherent Pre-LN: w = sqrt(g) = W2 to a Dirac, w' = -(alpha/sqrt C) w^2 (Haff's law of granular cooling: w ~ 1/t).
Random V: (sigma^2)' = -c (sigma^2)^2, c = alpha^2/(r_0^2 g_0) (sigma^2 ~ 1/(c t)). Both are w' = -c w^{1+p} for some
quantity w, solved by `power_law_decay`. Source: docs/theory/diffusion.md, sense iv.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, evaluated, finite, in_range, positive, scalar
from meanfield.derivations.affine_flow import RESULT as AFFINE_FLOW
from meanfield.derivations.granular_two_point import RESULT as GRANULAR_TWO_POINT
from meanfield.derivations.haff_rate import RESULT as HAFF_RATE
from meanfield.derivations.power_law_decay import RESULT as POWER_LAW_DECAY
from meanfield.derivations.random_value_rate import RESULT as RANDOM_VALUE_RATE

_RESCALE = "measure lengths in another unit, or lower the power"


def power_law_decay(t: ArrayLike, initial: ArrayLike, rate: ArrayLike, power: ArrayLike = 1.0) -> Array:
    """Solution w = w_0 (1 + p c w_0^p t)^{-1/p} of w' = -c w^{1+p}; w ~ (p c t)^{-1/p}, whatever w_0.

    Haff's law: power 1, w the width and c = alpha/sqrt(C). Random V: power 1, w the variance and c = alpha^2/(r_0^2
    g_0). Shapes broadcast; t in layers. Exact solution of the law; for the law itself see `haff_rate`,
    `random_value_rate`. ValueError unless t, w_0, c >= 0 and p > 0 (p = 0 is an exponential).
    """
    time, width, c, p = _law(t, initial, rate, power)
    return evaluated("w", POWER_LAW_DECAY.function, time, width, c, p, remedy=_RESCALE)


def affine_flow(x: ArrayLike, t: float, rate: float, power: float = 1.0) -> Array:
    """Positions at time t of the particles x of d_t mu = c div(mu w^p (x - m)), w the standard deviation of mu.

        x(t) = m + (x - m)(1 + p c w_0^p t)^{-1/p}

    x: (N,) or (N, d) equal weights, w^2 the total variance. Any profile is kept: the limit is a Dirac measure at the
    mean, reached as t^{-1/p} and never in finite time. Exact. ValueError as in `power_law_decay`, or for no particles.
    """
    points = finite("x", x)
    if points.ndim not in (1, 2) or points.size == 0:
        raise ValueError(f"x has shape {points.shape}; give (N,) or (N, d) positions, N at least 1")
    centre = points.mean(0)
    width = np.sqrt(((points - centre) ** 2).reshape(len(points), -1).sum(1).mean())
    laws = (("t", t), ("rate", rate), ("power", power))
    time, c, p = (scalar(name, value, remedy="the flow takes one number") for name, value in laws)
    time, width, c, p = _law(time, width, c, p)
    return evaluated("x", AFFINE_FLOW.function, points, centre, time, width, c, p, remedy=_RESCALE)


def granular_two_point(t: ArrayLike, initial: ArrayLike, power: ArrayLike = 1.0) -> Array:
    """Standard deviation s_0 (1 + p (2 s_0)^p t)^{-1/p} of two half masses under x' = -mean_y (x - y)|x - y|^p.

    The granular-media equation d_t mu = div(mu grad W * mu), W = |z|^{2+p}/(2+p), whose self-similar solution this is:
    at p = 1, t times the deviation tends to 1/2 from any start in one dimension. Exact for two points.
    ValueError unless t, s_0 >= 0 and p > 0.
    """
    time, deviation, _, p = _law(t, initial, 1.0, power)
    return evaluated("the deviation", GRANULAR_TWO_POINT.function, time, deviation, p, remedy=_RESCALE)


def haff_rate(width: ArrayLike, invariant: ArrayLike, gain: ArrayLike = 1.0) -> Array:
    """w' = -alpha w^2 (1 - w^2)/sqrt(C) of coherent Pre-LN (V = I), w = sqrt(g), C = r^2 g.

    Per layer. Exact at N = infinity, beta = 0, where C = r_0^2 g_0; otherwise C is the limit r_0^2 g_0 K of r^2 g and
    the law is that of late layers. Haff's law is the limit of small w, with relative error w^2 = g.
    ValueError unless 0 <= w <= 1, C > 0, alpha >= 0.
    """
    w = in_range("width", width, 0.0, 1.0, remedy="w = sqrt(g), g = 1 - mean cosine, of a cloud on one side")
    c = positive("invariant", invariant, remedy="C = r^2 (1 - mean cosine)")
    alpha = in_range("gain", gain, 0.0, remedy="give the residual gain")
    return evaluated("w'", HAFF_RATE.function, w, c, alpha, remedy=_RESCALE)


def random_value_rate(spread: ArrayLike, energy: ArrayLike, gain: ArrayLike = 1.0) -> Array:
    """g' = -(alpha^2/D) g^2 (1 - g), the average over independent random V of the mean spread g = 1 - cosine.

    Per layer, D = r_0^2 g_0 the energy of the differences, which uniform attention leaves alone. Limit N = infinity of
    the average energies; one draw of V fluctuates, std(ln M) ~ 2 sqrt(ln L/d). The law sigma^2' = -c sigma^4 is its
    limit of small g. ValueError unless 0 <= g <= 1, D > 0, alpha >= 0.
    """
    g = in_range("spread", spread, 0.0, 1.0, remedy="g = 1 - mean cosine of a cloud on one side")
    d = positive("energy", energy, remedy="D = r^2 (1 - mean cosine)")
    alpha = in_range("gain", gain, 0.0, remedy="give the residual gain")
    return evaluated("g'", RANDOM_VALUE_RATE.function, g, d, alpha, remedy=_RESCALE)


def _law(t: ArrayLike, initial: ArrayLike, rate: ArrayLike, power: ArrayLike) -> tuple[Array, Array, Array, Array]:
    return (
        in_range("t", t, 0.0, remedy="the law runs forward only: backward it blows up in finite time"),
        in_range("initial", initial, 0.0, remedy="a width is not negative"),
        in_range("rate", rate, 0.0, remedy="a negative rate grows without bound in finite time"),
        positive("power", power, remedy="power 0 is an exponential decay"),
    )
