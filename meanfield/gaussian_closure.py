"""Gaussian tokens: exact laws of mean and covariance without LayerNorm, and their closure under Pre-LN.

Attention over keys N(m, Sigma) returns m + Sigma h for the logits h.y, so a Gaussian stays Gaussian (N = infinity).

Without LayerNorm, x' = V A(x) with logits x.A'y:  m' = V (m + Sigma A' m),  Sigma' = V Sigma A' Sigma + transpose.
Pre-LN, V = I, logits beta theta_i . theta_j, theta = x/r with one r^2 = |m|^2 + tr Sigma for all tokens:
    m' = (I + beta Sigma/r^2) m/r,   Sigma^{-1}(t) = Sigma_0^{-1} - 2 beta I(t),   I' = r^{-3}.

The second is a closure: token norms fluctuate, and rows must not condense, s^2 < ln(N)/2 for the logit variance s^2.
Source: arXiv:2312.14820, arXiv:2501.18322; docs/theory/dynamics.md 1.7, 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from meanfield._checks import Array, attractive, finite, in_range, scalar
from meanfield.derivations.anisotropy_law import RESULT as ANISOTROPY
from meanfield.derivations.covariance_law import RESULT as VARIANCE
from meanfield.derivations.gaussian_attention import RESULT as ATTENTION
from meanfield.derivations.gaussian_blowup import RESULT as BLOWUP
from meanfield.derivations.gaussian_mean import RESULT as MEAN
from meanfield.derivations.isotropic_logistic import RESULT as LOGISTIC
from meanfield.derivations.normalised_covariance import RESULT as NORMALISED
from meanfield.derivations.precision_law import RESULT as PRECISION

BLOWN_UP = 1e8
"""Elapsed time over the time of the covariance's growth at which the general flow counts as blown up."""
_REPRESENTABLE = (1e-100, 1e100)  # whose cubes fit float64
_TIGHT = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-13}


@dataclass(frozen=True, eq=False)
class GaussianCloud:
    """Tokens N(mean, covariance) in d dimensions, (d,) and (d, d), in the units of x and x^2.

    ValueError on non-finite entries, on shapes that do not agree, and on a covariance that is not symmetric and
    positive semidefinite within rounding.
    """

    mean: Array
    covariance: Array

    def __post_init__(self) -> None:
        mean, covariance = finite("mean", self.mean), finite("covariance", self.covariance)
        if mean.ndim != 1 or mean.size == 0 or covariance.shape != (mean.size, mean.size):
            raise ValueError(
                f"mean {mean.shape} and covariance {covariance.shape} disagree; give (d,) and (d, d), d >= 1"
            )
        scale = max(np.abs(covariance).max(initial=0.0), np.finfo(float).tiny)
        if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-9 * scale:
            raise ValueError("covariance is not symmetric; pass (C + C.T)/2")
        lowest = np.linalg.eigvalsh(covariance)[0]
        if lowest < -1e-9 * scale:
            raise ValueError(f"covariance has the eigenvalue {lowest:g}; a covariance is positive semidefinite")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)


def pre_ln_closure(cloud: GaussianCloud, beta: float, times: ArrayLike, tokens: float) -> xr.Dataset:
    """Mean and covariance of a Gaussian cloud under Pre-LN at increasing times t >= 0.

    Dims time, i, j: mean, covariance, norm r, clock I = int r^{-3} dt, tau = int dt/r, spread tr S with S = Sigma/r^2,
    logit_variance s^2 = beta^2 (mu.S mu + tr S^2). Eigenvectors do not move: only their eigenvalues are integrated,
    through the clock. ValueError when s^2 exceeds ln(N)/2 at any time up to the last, where rows condense and the
    closure fails, and on negative beta, N < 2 or times that decrease.
    """
    t = _times(times)
    b = scalar("beta", attractive(beta), remedy="give one logit")
    limit = np.log(scalar("N", tokens, 2.0, remedy="give the number of tokens")) / 2.0
    start, axes = np.linalg.eigh(cloud.covariance)
    start = np.maximum(start, 0.0)
    dim = start.size

    def rates(_t, state):
        eigenvalues = PRECISION.function(start, b, state[dim])
        r = np.sqrt(state[:dim] @ state[:dim] + eigenvalues.sum())
        return np.concatenate([MEAN.function(state[:dim], eigenvalues, b, r), [r**-3, 1.0 / r]])

    def observed(states):
        """Eigenvalues, norm, share tr S and logit variance s^2 of states (..., d + 2)."""
        mean, eigenvalues = states[..., :dim], PRECISION.function(start, b, states[..., dim, None])
        norm = np.sqrt((mean**2).sum(-1) + eigenvalues.sum(-1))
        share, direction = eigenvalues / norm[..., None] ** 2, mean / norm[..., None]
        variance = b**2 * ((share * direction**2).sum(-1) + (share**2).sum(-1))
        return eigenvalues, norm, share.sum(-1), variance

    def condensed(_t, state):
        return observed(state)[-1] - limit

    condensed.terminal = True
    initial = np.concatenate([axes.T @ cloud.mean, [0.0, 0.0]])
    size = np.hypot(np.hypot.reduce(initial), np.sqrt(start.sum()))
    if size == 0.0:
        raise ValueError("all tokens are at the origin, where LayerNorm is undefined; give a mean or a covariance")
    scalar("the norm r", size, *_REPRESENTABLE, remedy="measure the tokens in another unit")
    found, when = observed(initial)[-1], 0.0
    if found <= limit:
        solution = solve_ivp(rates, (0.0, t[-1]), initial, t_eval=t, events=condensed, **_TIGHT)
        if solution.status < 0:
            raise ValueError(f"the integration to t={t[-1]:g} failed: {solution.message} Lower beta")
        found, when = (limit, solution.t_events[0][0]) if solution.status == 1 else (0.0, t[-1])
    if found >= limit:
        raise ValueError(
            f"logit variance s^2={found:.4g} at t={when:g} exceeds ln(N)/2={limit:.4g}: rows condense and the "
            "Gaussian closure fails; lower beta or simulate particles"
        )
    mean, clock, tau = solution.y[:dim].T, solution.y[dim], solution.y[dim + 1]
    eigenvalues, norm, spread, variance = observed(solution.y.T)
    return xr.Dataset(
        {
            "mean": (("time", "i"), mean @ axes.T),
            "covariance": (("time", "i", "j"), np.einsum("ia,ta,ja->tij", axes, eigenvalues, axes)),
            "norm": ("time", norm),
            "clock": ("time", clock),
            "tau": ("time", tau),
            "spread": ("time", spread),
            "logit_variance": ("time", variance),
        },
        coords={"time": t},
    )


def normalised_velocity(share: ArrayLike, direction: ArrayLike, beta: float) -> Array:
    """d lambda/d tau = 2 beta lambda^2 - 2 lambda (1 - tr S + beta mu.S mu + beta tr S^2), eigenvalues of S, (d,).

    share: eigenvalues of S = Sigma/r^2, (d,); direction: mu = m/r in its eigenvectors, (d,). Exact for the closure.
    ValueError unless both have one shape and tr S + |mu|^2 = 1 within 1e-6.
    """
    s = in_range("share", share, 0.0, 1.0, remedy="eigenvalues of Sigma/r^2 with r^2 = |m|^2 + tr Sigma")
    mu, b = finite("direction", direction), scalar("beta", attractive(beta), remedy="give one logit")
    if s.ndim != 1 or s.shape != mu.shape or abs(s.sum() + mu @ mu - 1.0) > 1e-6:
        raise ValueError(f"share {s} and direction {mu} are not (d,) each with sum(share) + |mu|^2 = 1; divide by r")
    return np.asarray(NORMALISED.function(s, s.sum(), (s * mu**2).sum(), (s**2).sum(), b))


def anisotropy_rate(first: ArrayLike, second: ArrayLike, beta: ArrayLike) -> Array:
    """d ln(lambda_1/lambda_2)/d tau = 2 beta (lambda_1 - lambda_2) of two eigenvalues of S: the larger one gains.

    Exact for the closure; broadcast shape. ValueError unless both are in [0, 1] and beta >= 0.
    """
    pair = (in_range("share", x, 0.0, 1.0, remedy="eigenvalues of Sigma/r^2") for x in (first, second))
    return np.asarray(ANISOTROPY.function(*pair, attractive(beta)))


def isotropic_spread(spread: ArrayLike, tau: ArrayLike) -> Array:
    """s(tau) = s_0/(s_0 + (1 - s_0) e^{2 tau}), tr S = 1 - gamma of an isotropic cloud for every beta, tau = int dt/r.

    Exact for the closure. ValueError unless 0 <= s_0 <= 1 and tau >= 0.
    """
    s = in_range("spread", spread, 0.0, 1.0, remedy="s = tr Sigma/r^2")
    time = in_range("tau", tau, 0.0, 350.0, remedy="tau = int dt/r starts at 0; beyond 350 the spread is below e^-700")
    return np.asarray(LOGISTIC.function(s, time))


def attention_output(cloud: GaussianCloud, logits: ArrayLike, query: ArrayLike) -> Array:
    """m + Sigma A' x, softmax attention of a query x over infinitely many keys y, logits y.A'x; (d,). Exact."""
    a, x, dim = finite("logits", logits), finite("query", query), cloud.mean.size
    if a.shape != (dim, dim) or x.shape != (dim,):
        raise ValueError(f"logits {a.shape} and query {x.shape} must be {(dim, dim)} and {(dim,)} like the cloud")
    weight = cloud.covariance @ a @ x
    return np.asarray(ATTENTION.function(cloud.mean, 1.0, weight))


def gaussian_variance(variance: ArrayLike, gain: ArrayLike, time: ArrayLike) -> Array:
    """v(t) = v_0/(1 - 2 gain v_0 t) without LayerNorm along a common eigenvector of V and A', gain = product.

    V = -I, A' = beta I: v_0/(1 + 2 beta v_0 t), an exact O(1/t). V = +I: blow-up at 1/(2 beta v_0). Exact at N =
    infinity. ValueError at or past the blow-up, naming its time.
    """
    v = in_range("variance", variance, 0.0, remedy="a variance is not negative")
    k, t = finite("gain", gain), in_range("time", time, 0.0, remedy="time starts at 0")
    v, k, t = np.broadcast_arrays(v, k, t)
    late = 2.0 * k * v * t >= 1.0
    if np.any(late):
        end = float(BLOWUP.function(v[late][0], k[late][0]))
        raise ValueError(
            f"time={t[late][0]:g} is not before the blow-up at {end:g}; stop earlier or simulate particles"
        )
    return np.asarray(VARIANCE.function(v, k, t))


def blowup_time(cloud: GaussianCloud, gain: float) -> float:
    """1/(2 gain lambda_max): end of the Gaussian law for V A' = gain I; infinity when nothing grows. Exact."""
    strongest = (
        scalar("gain", gain, remedy="give the product of the eigenvalues of V and A'")
        * np.linalg.eigvalsh(cloud.covariance)[-1]
    )
    return float(BLOWUP.function(strongest, 1.0)) if strongest > 0.0 else np.inf


def covariance_flow(cloud: GaussianCloud, value: ArrayLike, logits: ArrayLike, times: ArrayLike) -> xr.Dataset:
    """m' = V (m + Sigma A' m), Sigma' = V Sigma A' Sigma + transpose at increasing times, V and A' (d, d).

    Dims time, i, j: mean, covariance. Exact at N = infinity up to the solver's tolerance 1e-10. ValueError at a
    blow-up, where the covariance grows within 1e-8 of the elapsed time (powers of t never do), when it leaves float64,
    or when shapes disagree.
    """
    t = _times(times)
    v, a = finite("value", value), finite("logits", logits)
    dim = cloud.mean.size
    if v.shape != (dim, dim) or a.shape != (dim, dim):
        raise ValueError(f"value {v.shape} and logits {a.shape} must be {(dim, dim)} like the covariance")

    def rates(_t, state):
        mean, covariance = state[:dim], state[dim:].reshape(dim, dim)
        growth = v @ covariance @ a
        return np.concatenate([v @ mean + growth @ mean, (growth @ covariance + covariance @ growth.T).ravel()])

    def blown_up(time, state):
        return time * np.abs(rates(time, state)[dim:]).max() - BLOWN_UP * np.abs(state[dim:]).max()

    def too_large(_t, state):
        return np.abs(state).max() - _REPRESENTABLE[1]

    blown_up.terminal = too_large.terminal = True
    initial = np.concatenate([cloud.mean, cloud.covariance.ravel()])
    scalar("the largest entry", np.abs(initial).max(), 0.0, 1e90, remedy="measure the tokens in another unit")
    solution = solve_ivp(rates, (0.0, t[-1]), initial, t_eval=t, events=(blown_up, too_large), **_TIGHT)
    if solution.status != 0:
        last = max((events[0] for events in solution.t_events if events.size), default=np.nan)
        what = "leaves float64" if solution.t_events[1].size else "blows up"
        raise ValueError(f"the covariance {what} at t={last:.6g}, before {t[-1]:g}; stop earlier or simulate particles")
    return xr.Dataset(
        {
            "mean": (("time", "i"), solution.y[:dim].T),
            "covariance": (("time", "i", "j"), solution.y[dim:].T.reshape(-1, dim, dim)),
        },
        coords={"time": t},
    )


def _times(times: ArrayLike) -> Array:
    t = in_range("times", times, 0.0, remedy="time starts at 0")
    if t.ndim != 1 or t.size == 0 or t[-1] == 0.0 or np.any(np.diff(t) <= 0.0):
        raise ValueError(f"times of shape {t.shape} are not increasing towards a positive end; sort them")
    return t
