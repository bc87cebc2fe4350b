"""The heat flow of features over token indices: X <- X + s_l (A - I) X with s_l = alpha/r_l.

A, row-stochastic, is the Markov kernel of a walk between tokens, so this is a heat equation on the token graph whose
diffusivity alpha/r_l fades as the residual norm r_l grows: the precise sense of "degenerate diffusion" in depth.
Source: docs/theory/diffusion.md, sense ii.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import eigvals, lu_factor, lu_solve
from scipy.sparse.linalg import LinearOperator, gmres

from meanfield._checks import TINY, Array, count, evaluated, finite, in_range, scalar
from meanfield.derivations.index_flow_amplitude import RESULT as INDEX_FLOW_AMPLITUDE
from meanfield.derivations.index_flow_power import RESULT as INDEX_FLOW_POWER

Attention = ArrayLike | LinearOperator

ROW_SUM = 1e-6
"""How far a row of attention may be from summing to one (as in `attention_entropy`)."""
STRONGEST = 1e10
"""Largest implicit gain: the condition number of I - s(A - I) is of its order."""

_UNIQUE = 1e-6  # far above the rounding of two converged iterations, far below the difference of two distributions


def pre_norm_gains(layers: int, initial_norm: float, gain: float = 1.0) -> Array:
    """alpha/r_l for l = 0, 1, ..., r_l = r_0 + alpha l: the diffusivity of Pre-LN with aligned tokens, (layers,).

    ValueError unless layers >= 1, r_0 > 0, alpha > 0.
    """
    depth = np.arange(count("layers", layers, least=1, remedy="give the number of layers"))
    norm = scalar("initial_norm", initial_norm, TINY, remedy="give the norm of a token before the first layer")
    alpha = scalar("gain", gain, TINY, remedy="give the norm a layer adds to a token")
    return evaluated("alpha/r", lambda r: alpha / (r + alpha * depth), norm, remedy="rescale the norm and the gain")


def index_flow(
    attention: Attention, tokens: ArrayLike, gains: ArrayLike, *, method: Literal["explicit", "implicit"] = "explicit"
) -> xr.Dataset:
    """Tokens (layer, token, channel) under X <- X + s (A - I) X (explicit) or X <- (I - s (A - I))^{-1} X (implicit).

    attention: (N, N) row-stochastic, dense or a LinearOperator; tokens: (N, d) or (N,); gains: (L,) s_l. Layer 0 is the
    input. Exact for the frozen A; conserved: pi^T X with pi^T A = pi^T. Maximum principle: no entry leaves the range of
    its channel at the start; explicit needs s <= 1 (a convex combination), implicit holds at every s >= 0, in
    float64 up to 1e10. The normalised residual flow X <- (X + sigma A X)/(1 + sigma) is the explicit flow with
    s = sigma/(1 + sigma).
    ValueError for a matrix that is not square, not row-stochastic or not finite, a gain outside its range, or tokens of
    another N.
    """
    operator = _stochastic(attention)
    x = finite("tokens", tokens)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) != operator.shape[0]:
        raise ValueError(f"tokens have shape {np.shape(tokens)}; give ({operator.shape[0]}, channels), one row a token")
    if method not in ("explicit", "implicit"):
        raise ValueError(f"method={method!r} is unknown; choose 'explicit' or 'implicit'")
    limit = 1.0 if method == "explicit" else STRONGEST
    remedy = "use method='implicit' above 1 (above 1e10 every token is pi^T X); none is negative"
    steps = np.atleast_1d(in_range("gains", gains, 0.0, limit, remedy=remedy))
    if steps.ndim != 1:
        raise ValueError(f"gains have shape {steps.shape}; give one gain for each layer, (L,)")
    states = [x]
    for s in steps:
        x = x + s * (operator @ x - x) if method == "explicit" else _resolvent(operator, s, x)
        states.append(x)
    arrays = {"tokens": (("layer", "token", "channel"), np.array(states), {"long_name": "features", "units": "1"})}
    total = np.concatenate([[0.0], np.cumsum(steps)])
    arrays["diffusion_time"] = ("layer", total, {"long_name": "sum of alpha/r over the layers", "units": "1"})
    return xr.Dataset(arrays, {"layer": ("layer", np.arange(len(states)))}, {"method": method})


def stationary_distribution(attention: Attention, *, iterations: int = 10_000, tolerance: float = 1e-14) -> Array:
    """pi with pi^T A = pi^T, sum 1, (N,): the weights whose mean of the tokens the flow conserves.

    Power iteration with ((A + I)/2)^T, which also converges for a periodic A, from two starts (a LinearOperator needs
    rmatvec). Attention is positive, so pi is unique and the error falls as ((1 + lambda_2)/2)^k. ValueError when it has
    not converged, when the two ends differ (pi is not unique), or as in `index_flow`.
    """
    operator = _stochastic(attention)
    most = count("iterations", iterations, least=1, remedy="give the largest number of iterations")
    close = scalar("tolerance", tolerance, TINY, remedy="give the largest change that counts as none")
    ramp = np.sqrt(np.arange(1.0, operator.shape[0] + 1.0))
    pi = np.stack([np.ones_like(ramp), ramp], axis=1)
    pi /= pi.sum(0)
    for _ in range(most):
        after = 0.5 * (operator.T @ pi + pi)
        after /= after.sum(0)
        change, pi = np.abs(after - pi).sum(0).max(), after
        if change <= close:
            break
    else:
        raise ValueError(f"not stationary after {most} iterations; A is nearly reducible: give more, or split it")
    if np.abs(pi[:, 0] - pi[:, 1]).sum() > _UNIQUE:
        raise ValueError("pi is not unique: A is reducible, tokens of one part never attend to another; split it")
    return pi[:, 0]


def relaxation_deficits(attention: ArrayLike) -> Array:
    """1 - lambda_k for the eigenvalues of A, by increasing real part, complex in general, (N,); the first is 0.

    The second is the spectral gap kappa. Dense: O(N^3). Real when A is softmax of symmetric logits, which is reversible
    under pi. ValueError as in `index_flow`, or for a LinearOperator.
    """
    if isinstance(attention, LinearOperator):
        raise ValueError("attention is a LinearOperator; give the dense matrix, or scipy.sparse.linalg.eigs of it")
    deficits = 1.0 - eigvals(np.asarray(_stochastic(attention)))
    return np.sort_complex(deficits)


def mode_amplitude(layers: ArrayLike, deficit: ArrayLike, initial_norm: float, gain: float = 1.0) -> Array:
    """Amplitude of a mode of A, deficit q = 1 - lambda, after L explicit layers; r_l = r_0 + alpha l, rho = r_0/alpha.

        prod_{l<L} (1 - q/(rho + l)) = Gamma(L + rho - q) Gamma(rho)/(Gamma(L + rho) Gamma(rho - q)) ~ L^{-q}

    Shapes broadcast. Exact for real q. ValueError unless L >= 0, 0 <= q < r_0/alpha (one layer may not reverse a mode).
    """
    rho = _norm_ratio(initial_norm, gain)
    q = in_range("deficit", deficit, 0.0, np.nextafter(rho, 0.0), remedy="q = 1 - eigenvalue must be below r_0/alpha")
    depth = in_range("layers", layers, 0.0, remedy="depth is not negative")
    return evaluated("the amplitude", INDEX_FLOW_AMPLITUDE.function, depth, rho, q, remedy="rescale norm and gain")


def mode_power_law(t: ArrayLike, eigenvalue: ArrayLike, initial_norm: float, gain: float = 1.0) -> Array:
    """(1 + alpha t/r_0)^{lambda - 1}: the continuous limit, an algebraic decay because total diffusion is logarithmic.

    The energy decays as t^{-2(1 - lambda)}: linear response, exponent nu(1 - Lambda_k/Lambda_0) with nu = 2. Shapes
    broadcast. Exact in continuous depth. ValueError unless t >= 0, -1 <= lambda <= 1.
    """
    value = in_range("eigenvalue", eigenvalue, -1.0, 1.0, remedy="eigenvalues of a stochastic matrix")
    time = in_range("t", t, 0.0, remedy="depth is not negative")
    return np.asarray(INDEX_FLOW_POWER.function(time, _norm_ratio(initial_norm, gain), value))


def _norm_ratio(initial_norm: float, gain: float) -> float:
    gains = pre_norm_gains(1, initial_norm, gain)
    return float(evaluated("r_0/alpha", np.reciprocal, gains, remedy="rescale norm and gain")[0])


def _stochastic(attention: Attention) -> Array | LinearOperator:
    """The matrix or operator, checked to be square, finite, not negative (if dense), with rows that sum to one."""
    operator = attention if isinstance(attention, LinearOperator) else finite("attention", attention)
    if operator.ndim != 2 or operator.shape[0] != operator.shape[1] or operator.shape[0] == 0:
        raise ValueError(f"attention has shape {operator.shape}; give (N, N), queries by keys")
    if isinstance(operator, np.ndarray) and operator.min() < 0.0:
        raise ValueError(f"attention contains {operator.min():g}; give the weights after the softmax")
    worst = np.abs(finite("A 1", operator @ np.ones(operator.shape[0])) - 1.0).max()
    if worst > ROW_SUM:
        raise ValueError(f"a row of attention sums to 1 only within {worst:g}; give the weights after the softmax")
    return operator


def _resolvent(operator: Array | LinearOperator, s: float, x: Array) -> Array:
    """(I - s (A - I))^{-1} x: an M-matrix, whose inverse is row-stochastic."""
    if isinstance(operator, np.ndarray):
        return lu_solve(lu_factor((1.0 + s) * np.eye(len(operator)) - s * operator), x)
    system = LinearOperator(operator.shape, matvec=lambda v: (1.0 + s) * v - s * (operator @ v), dtype=np.float64)
    columns = []
    for column in x.T:
        solution, failed = gmres(system, column, x0=column, rtol=1e-12, restart=50, maxiter=100)
        if failed:
            raise ValueError(f"gmres did not converge at gain {s:g}; use smaller gains or the dense matrix")
        columns.append(solution)
    return np.stack(columns, axis=1)
