"""Equiangular tokens: the exact dynamics of attention collapse for every normalisation, with V = I and Q^T K = beta I.

N tokens x_i = r theta_i whose pairwise cosines are all 1 - g keep this form. Directions and norm obey

    theta_i' = alpha P A_i/s,   u' = -2 alpha kappa u/s,   u = g/(N - (N - 1) g)

    post   s = 1,             r = 1          (Post-LN, arXiv:2312.10794 SA); kappa contraction, s speed, r norm
    usa    s = 1,             kappa = e^{beta (1 - g)}, unnormalised attention
    sqrt   s = sqrt(t + 1),   r = 1          (sqrt scaling)
    pre    s = r,             r' = alpha theta.A
    mix    post up to `switch`, pre afterwards
    peri   s = r |A|,         r' = alpha theta.A/|A|
    ngpt   s = |A|,           r = 1

Time t is depth in the limit of small gains; `layers` gives whole layers instead. Source: arXiv:2312.10794,
arXiv:2510.22026; docs/theory/dynamics.md 1.1, 1.2, 2.1, 2.2. Exact for equiangular tokens; i.i.d. tokens follow it up
to O(d^{-1/2}) in the transient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad, solve_ivp

from meanfield._checks import (
    ATTRACTIVE,
    TINY,
    Array,
    attractive,
    count,
    evaluated,
    in_range,
    positive,
    scalar,
    token_count,
)
from meanfield.closed_forms import contraction
from meanfield.derivations.asymptotic_constant import RESULT as CONSTANT
from meanfield.derivations.equiangular_attention_norm import RESULT as ATTENTION_NORM
from meanfield.derivations.equiangular_cosine import RESULT as COSINE
from meanfield.derivations.equiangular_radial import RESULT as RADIAL
from meanfield.derivations.exponential_rate import RESULT as RATE
from meanfield.derivations.first_integral import RESULT as INTEGRAND
from meanfield.derivations.initial_slope import RESULT as SLOPE
from meanfield.derivations.initial_slope_normalised import RESULT as SLOPE_NORMALISED
from meanfield.derivations.layer_scale import RESULT as LAYER_SCALE
from meanfield.derivations.local_exponent import RESULT as EXPONENT
from meanfield.derivations.mode_ratio import RESULT as RATIO
from meanfield.derivations.mode_ratio_spread import RESULT as SPREAD
from meanfield.derivations.post_ln_recursion import RESULT as POST_LAYER
from meanfield.derivations.pre_ln_recursion import RESULT as PRE_LAYER
from meanfield.derivations.sqrt_scaling_decay import RESULT as SQRT_DECAY
from meanfield.derivations.two_mode_contraction import RESULT as KAPPA
from meanfield.derivations.usa_contraction import RESULT as KAPPA_USA
from meanfield.derivations.wasserstein_dirac import RESULT as WASSERSTEIN

Normalisation = Literal["post", "usa", "sqrt", "pre", "mix", "peri", "ngpt"]

MAX_LOGIT = 700.0  # the largest exponent that fits float64
_SYMMETRIC = "spread = 1 - the common cosine is in (0, N/(N - 1))"


@dataclass(frozen=True)
class Equiangular:
    """Start and parameters of the dynamics.

    tokens N >= 2; beta >= 0 the logit of a token with itself; spread g_0 = 1 - cosine in (0, N/(N - 1)); normalisation;
    norm r_0 > 0 (pre, mix and peri; 1 otherwise); gain alpha > 0; switch >= 0, when mix becomes pre; else ValueError.
    """

    tokens: float
    beta: float
    spread: float = 1.0
    normalisation: Normalisation = "pre"
    norm: float = 1.0
    gain: float = 1.0
    switch: float = 0.0

    def __post_init__(self) -> None:
        n = scalar("N", self.tokens, 2.0, remedy="give the number of tokens")
        scalar("beta", self.beta, 0.0, MAX_LOGIT, remedy="attractive logits that fit float64")
        scalar("norm", self.norm, TINY, remedy="a token has a positive norm")
        scalar("gain", self.gain, TINY, remedy="a gain of zero changes nothing")
        scalar("switch", self.switch, 0.0, remedy="give the time when Mix-LN changes to Pre-LN")
        scalar("spread", self.spread, TINY, np.nextafter(n / (n - 1.0), 0.0), remedy=_SYMMETRIC)
        if self.normalisation not in get_args(Normalisation):
            raise ValueError(f"normalisation={self.normalisation!r} is unknown; use one of {get_args(Normalisation)}")
        if self.normalisation not in ("pre", "mix", "peri") and self.norm != 1.0:
            raise ValueError(f"norm={self.norm:g}: tokens under {self.normalisation!r} stay on the unit sphere; use 1")


def trajectory(system: Equiangular, times: ArrayLike, *, relative_tolerance: float = 1e-11) -> tuple[Array, Array]:
    """Spread g(t) and norm r(t) at increasing times t >= 0, each in the shape of `times`, dimensionless.

    u' = -2 alpha kappa u/s, integrated as ln u so that g keeps its relative precision however small it is. Exact up to
    the tolerance of the solver (DOP853). ValueError when times are not increasing or negative.
    """
    t = in_range("times", times, 0.0, remedy="time starts at 0")
    if t.ndim != 1 or t.size == 0 or np.any(np.diff(t) < 0.0):
        raise ValueError(f"times have shape {t.shape} or decrease; give a one-dimensional increasing array")
    state = np.array([np.log(RATIO.function(system.spread, system.tokens)), system.norm])
    phases = [("post", 0.0, system.switch), ("pre", system.switch, np.inf)]
    phases = phases if system.normalisation == "mix" else [(system.normalisation, 0.0, np.inf)]
    tight = {"method": "DOP853", "rtol": relative_tolerance, "atol": 1e-14}
    found = np.empty((2, t.size))
    for name, begin, end in phases:
        here = (t >= begin) & (t <= end)
        until = min(end, t[-1])
        if until > begin:
            knots = np.unique(np.append(t[here], until))
            with np.errstate(over="ignore", invalid="ignore"):  # trial steps that the solver rejects
                solution = solve_ivp(partial(_rates, system, name), (begin, until), state, t_eval=knots, **tight)
            if solution.status < 0:
                raise ValueError(f"the integration from t={begin:g} failed: {solution.message} Lower beta or the gain")
            found[:, here] = solution.y[:, np.searchsorted(knots, t[here])]
            state = solution.y[:, -1]
        else:
            found[:, here] = state[:, None]
    return np.asarray(SPREAD.function(np.exp(found[0]), system.tokens)), found[1]


def cosine_velocity(system: Equiangular, spread: ArrayLike, norm: ArrayLike, time: float = 0.0) -> Array:
    """gamma' = 2 alpha kappa g (1 - (N - 1) g/N)/s at a given state and time, in the form of arXiv:2312.10794.

    spread and norm broadcast. Exact. ValueError unless 0 <= g < N/(N - 1), r > 0 and t >= 0.
    """
    t = scalar("time", time, 0.0, remedy="time starts at 0")
    r = positive("norm", norm, remedy="a token has a positive norm")
    n = system.tokens
    g = in_range("spread", spread, 0.0, np.nextafter(n / (n - 1.0), 0.0), remedy=_SYMMETRIC)
    name = system.normalisation if system.normalisation != "mix" else "pre" if t >= system.switch else "post"

    def velocity(g, r):
        kappa, speed, _ = _laws(system, name, t, g, r)
        return system.gain * COSINE.function(g, kappa, n, speed)

    return evaluated("the velocity", velocity, g, r, remedy="lower beta, or bring g away from N/(N - 1)")


def layers(system: Equiangular, depth: int) -> tuple[Array, Array]:
    """Spread and norm before the first of `depth` whole layers and after each, (depth + 1) each. Exact for any gain.

    post: x <- normalise(x + alpha A); pre: x <- x + alpha A; peri: x <- x + alpha A/|A|, attention seeing directions.
    ValueError for other normalisations.
    """
    if system.normalisation not in ("post", "pre", "peri"):
        raise ValueError(f"no recursion in layers for {system.normalisation!r}; use trajectory")
    n = system.tokens
    u, r = float(RATIO.function(system.spread, n)), system.norm
    found = [(system.spread, r)]
    for _ in range(count("depth", depth, remedy="give the number of layers")):
        g = min(float(SPREAD.function(u, n)), 2.0)
        delta = contraction(g, system.beta, n)
        if system.normalisation == "post":
            u *= POST_LAYER.function(system.gain, delta)
        else:
            step = system.gain / r
            if system.normalisation == "peri":
                step /= np.sqrt(ATTENTION_NORM.function(g, delta, n))
            factor = partial(evaluated, "a layer", PRE_LAYER.function, step, remedy="lower the gain")
            mean, rest = factor(1.0), factor(delta)
            share = (n - 1.0) * g / n
            r *= np.sqrt((1.0 - share) * mean + share * rest)
            u *= rest / mean
        found.append((float(SPREAD.function(u, n)), r))
    return tuple(np.array(found).T)


def first_integral(spread: float, start: float, beta: float, tokens: float) -> float:
    """J(g) = int_g^{g_0} (e^{beta s} - 1)/(s (N - (N - 1) s)) ds: r^2 g e^{-J(g)} is constant under Pre-LN.

    Exact up to a quadrature error of 1e-11. ValueError unless 0 <= g <= g_0 < N/(N - 1) and beta g_0 <= 700.
    """
    n = scalar("N", tokens, 2.0, remedy="give the number of tokens")
    g_0 = scalar("start", start, 0.0, np.nextafter(n / (n - 1.0), 0.0), remedy=_SYMMETRIC)
    g = scalar("spread", spread, 0.0, g_0, remedy="give 0 <= g <= g_0")
    b = scalar("beta", beta, 0.0, remedy=ATTRACTIVE)
    scalar("beta g_0", b * g_0, 0.0, MAX_LOGIT, remedy="the integrand leaves float64; follow trajectory instead")

    # In v = ln N - ln(N - (N - 1) s) the integrand has no pole beside the end of the interval.
    def integrand(v):
        s = -n / (n - 1.0) * np.expm1(-v)
        return INTEGRAND.function(s, b, n) * (n * (1.0 - s) + s) / (n - 1.0)

    ends = (np.log(n / (n * (1.0 - s) + s)) for s in (g, g_0))
    return quad(integrand, *ends, epsabs=1e-13, epsrel=1e-11, limit=500)[0]


def collapse_constant(system: Equiangular) -> float:
    """C = r_0^2 g_0 e^{J(0)} with (alpha t)^2 g -> C and (alpha t) W2 -> sqrt((N - 1) C/N) under Pre-LN. Exact.

    ValueError for other normalisations (Peri-LN has the same power of t but another constant, which only its trajectory
    gives), and for J(0) > 700, where C leaves float64: ln C = ln(r_0^2 g_0) + `first_integral`.
    """
    if system.normalisation != "pre":
        raise ValueError(f"the constant is derived for 'pre', not {system.normalisation!r}; follow trajectory")
    too_large = "C leaves float64; use ln C = ln(r_0^2 g_0) + first_integral"
    integral = first_integral(0.0, system.spread, system.beta, system.tokens)
    return float(evaluated("C", CONSTANT.function, system.norm, system.spread, integral, remedy=too_large))


def wasserstein_to_dirac(spread: ArrayLike, tokens: ArrayLike) -> Array:
    """W2 = sqrt(2 (1 - sqrt(1 - (N - 1) g/N))), chordal distance on the unit sphere to the best Dirac. Exact."""
    n = token_count(tokens, least=1.0)
    g = in_range("spread", spread, 0.0, 2.0, remedy="g = 1 - cosine")
    share = (n - 1.0) * g / n
    in_range("(N - 1) g/N", share, 0.0, 1.0, remedy="N cosines cannot average below -1/(N - 1)")
    return np.asarray(WASSERSTEIN.function(g, n))


def initial_slope(system: Equiangular) -> float:
    """gamma'(0) from orthogonal tokens (g_0 = 1), the table of Theorem 4.1 of arXiv:2510.22026.

    2 alpha/(s (e^beta + N - 1)), s = r_0 for pre, 1 for post, sqrt and mix; 2 alpha/(s sqrt(e^{2 beta} + N - 1)) for
    peri (s = r_0) and ngpt (s = 1). ValueError when g_0 is not 1, and for usa, which is not in the table.
    """
    if system.spread != 1.0 or system.normalisation == "usa":
        raise ValueError(f"{system} is not in the table, which is for orthogonal tokens, spread=1; use cosine_velocity")
    law = SLOPE_NORMALISED if system.normalisation in ("peri", "ngpt") else SLOPE
    starts_pre = system.normalisation in ("pre", "peri") or (system.normalisation == "mix" and system.switch == 0.0)
    return float(system.gain * law.function(system.beta, system.tokens, system.norm if starts_pre else 1.0))


def collapse_exponent(system: Equiangular, time: ArrayLike) -> Array:
    """Exponent E(t) of the late decay g ~ e^{-E(t)} of the tokens that stay on the sphere.

    post and ngpt 2 alpha t; usa 2 e^beta alpha t; sqrt 4 alpha (sqrt(t + 1) - 1). Asymptotic near g = 0.
    ValueError for pre, mix and peri, which decay as t^{-2} (`collapse_constant`).
    """
    t = in_range("time", time, 0.0, remedy="time starts at 0")
    if system.normalisation == "sqrt":
        return np.asarray(system.gain * SQRT_DECAY.function(t))
    if system.normalisation not in ("post", "usa", "ngpt"):
        raise ValueError(f"{system.normalisation!r} collapses as a power of t; use collapse_constant")
    kappa = float(KAPPA_USA.function(0.0, system.beta)) if system.normalisation == "usa" else 1.0
    return system.gain * RATE.function(kappa, 1.0) * t


def depth_regime(system: Equiangular, depth: float, *, tolerance: float = 0.1) -> tuple[float, bool]:
    """Local exponent -d ln g/d ln L of Pre-LN after `depth` layers, and whether it is within `tolerance` of 2.

    e = 2 q kappa (1 - (N - 1) g/N), q = alpha L/r. Depth, gain and initial norm enter only as alpha L/r_0:
    with LayerScale (small alpha) a network of ordinary depth is pre-asymptotic and shows no power law. Limit of small
    gains. ValueError for other normalisations or a negative depth.
    """
    if system.normalisation != "pre":
        raise ValueError(f"the local exponent is derived for 'pre', not {system.normalisation!r}")
    layer = scalar("depth", depth, 0.0, remedy="give a number of layers")
    scaled = float(LAYER_SCALE.function(system.gain, layer, system.norm))
    unit = Equiangular(system.tokens, system.beta, system.spread)
    (g,), (r,) = trajectory(unit, [scaled])
    kappa = KAPPA.function(g, system.beta, system.tokens)
    exponent = float(EXPONENT.function(g, kappa, system.tokens, scaled / r))
    return exponent, abs(exponent - 2.0) <= tolerance


def metastable(spread: ArrayLike, beta: ArrayLike, tokens: ArrayLike) -> Array:
    """Whether beta g > ln N, where kappa < N/(2N - 1) falls as N e^{-beta g}: every token attends to itself."""
    n = token_count(tokens, least=2.0)
    g = in_range("spread", spread, 0.0, 2.0, remedy="g = 1 - cosine")
    return attractive(beta) * g > np.log(n)


def _rates(system: Equiangular, name: str, time: float, state: Array) -> list[float]:
    g = SPREAD.function(np.exp(state[0]), system.tokens)
    kappa, speed, growth = _laws(system, name, time, g, state[1])
    return [-2.0 * system.gain * kappa / speed, system.gain * growth]


def _laws(system: Equiangular, name: str, time, g, norm):
    """Contraction, speed and growth of the norm."""
    n = system.tokens
    kappa = KAPPA_USA.function(g, system.beta) if name == "usa" else KAPPA.function(g, system.beta, n)
    if name in ("post", "usa"):
        return kappa, 1.0, 0.0
    if name == "sqrt":
        return kappa, np.sqrt(time + 1.0), 0.0
    if name == "pre":
        return kappa, norm, RADIAL.function(g, 1.0 - kappa, n)
    length = np.sqrt(ATTENTION_NORM.function(g, 1.0 - kappa, n))
    if name == "ngpt":
        return kappa, length, 0.0
    return kappa, norm * length, RADIAL.function(g, 1.0 - kappa, n) / length
