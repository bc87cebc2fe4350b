"""Population quantities of softmax attention between uniform directions on a sphere: the model of QK-normed heads.

Queries and keys are uniform on S^{D-1}, logits kappa cos(q, k). LayerNorm on q and k with head dimension D and the
scale 1/sqrt(D) gives kappa = sqrt(D). The variance of a row of logits is s^2 = kappa^2/D.
At finite N the softmax damps its own large weights: conditional on one query and one key, an entry has the mean
f_N(kappa cos) (`row_statistics.entry_moments`), again a dot-product kernel, whose singular values `damped_spectrum`
gives.
Source: docs/theory/finite_n.md (Funk-Hecke, damped kernel).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from meanfield._checks import Array, count, in_range
from meanfield.derivations.gegenbauer_recurrence import RESULT as RECURRENCE
from meanfield.derivations.leading_value import RESULT as LEADING_VALUE
from meanfield.derivations.sphere_deficit import RESULT as DEFICIT
from meanfield.derivations.sphere_frobenius import RESULT as FROBENIUS
from meanfield.derivations.sphere_log_moment import RESULT as LOG_TERM
from meanfield.derivations.sphere_multiplicity import RESULT as LOG_MULTIPLICITY
from meanfield.derivations.sphere_singular_values import RESULT as SIGMA_RATIO
from meanfield.row_statistics import LogitDensity, entry_moments, sphere_logits

NEGLIGIBLE = 1e-15
"""Share of the sum of singular values that the truncated degrees may carry."""
MAX_KAPPA = 1e5
MAX_DIM = 4096
_DIMENSION = "give the head dimension D"
MAX_DEGREE = 20_000
MAX_DAMPED_KAPPA = 500.0
RESOLVED = 1e-11
"""Amplitudes sigma sqrt(multiplicity) of the damped kernel below this share of the first degree's are rounding."""
LARGEST_LOG = 650.0
"""Multiplicities are kept in float64, below e^650."""


def sphere_spectrum(kappa: float, dim: int) -> tuple[Array, Array]:
    """Population singular values of the sphere, sigma_k = I_{k+nu}(kappa)/I_nu(kappa), nu = D/2 - 1, with
    multiplicities.

    Returns (sigma, multiplicity) over the degrees k = 0, 1, ...; sigma_0 = 1 with multiplicity 1, then
    (2k + D - 2)(k + D - 3)!/(k! (D - 2)!). Exact up to the truncation: the dropped degrees carry less than
    NEGLIGIBLE of sum multiplicity * sigma. The ratios come from the backward recurrence
    I_{n+1}/I_n = 1/(2(n + 1)/kappa + I_{n+2}/I_{n+1}), which is stable for every D and kappa > 0.
    ValueError when kappa <= 0, dim < 2, or more than MAX_DEGREE degrees or multiplicities above e^LARGEST_LOG
    are needed.
    """
    kappa, dim = _check(kappa, dim)
    degrees = 64
    while True:
        log_sigma = np.concatenate([[0.0], np.cumsum(np.log(bessel_ratio(kappa, dim, degrees)))])
        k = np.arange(degrees + 1)
        log_mult = _log_multiplicity(k, dim)
        log_terms = log_mult + log_sigma
        falling = log_terms[-1] < log_terms[-2]
        if falling and log_terms[-1] - logsumexp(log_terms) < np.log(NEGLIGIBLE):
            keep = log_terms - logsumexp(log_terms) > np.log(NEGLIGIBLE) - np.log(degrees)
            keep = k <= k[keep][-1]
            if log_mult[keep][-1] > LARGEST_LOG:
                raise ValueError(
                    f"kappa={kappa:g} at D={dim} needs multiplicities above e^{LARGEST_LOG:g}; lower kappa or D"
                )
            return np.exp(log_sigma[keep]), np.exp(log_mult[keep])
        degrees *= 2
        if degrees > MAX_DEGREE:
            raise ValueError(
                f"kappa={kappa:g} at D={dim} needs more than {MAX_DEGREE} degrees; lower kappa: such rows are condensed"
            )


def damped_spectrum(kappa: float, dim: int, tokens: float) -> tuple[Array, Array, LogitDensity]:
    """Singular values of the conditional mean of A at N tokens, its leading mode and energy completed; multiplicities.

    sigma_k(N) = N E[f_N(kappa cos) P_k(cos)] with Gegenbauer polynomials P_k(1) = 1 (Funk-Hecke, quadrature in the
    angle), degrees k >= 1 in descending order. The noise that a row shares (fluctuation of Z) scales rows: all sigma_k,
    k >= 1, get one factor, so that s_1^2 + sum multiplicity sigma^2 is the exact N E sum A^2. The leading value is
    s_1^2 = 1 + (1/N) sum multiplicity sigma^2/(1 - sigma^2): rows sum to one exactly, columns only on average;
    second-order perturbation, at most half of |A|_F^2 - 1.
    Returns (sigma, multiplicity, density of the logits). Tends to `sphere_spectrum` for N -> infinity.
    ValueError when kappa is above MAX_DAMPED_KAPPA, and as `sphere_spectrum`.
    """
    kappa, dim = _check(kappa, dim)
    if kappa > MAX_DAMPED_KAPPA:
        raise ValueError(f"kappa={kappa:g} exceeds {MAX_DAMPED_KAPPA:g}; use sphere_spectrum, the limit of many tokens")
    degrees = int(24 + min(3.0 * kappa, 400.0))
    density = sphere_logits(kappa, dim, 2 * degrees + dim // 2 + 60)
    first, second = entry_moments(density, tokens)
    root = np.exp(0.5 * density.log_weight)
    amplitude = np.abs(_gegenbauer(degrees, dim, density.values.size) @ (tokens * first * root))  # sigma sqrt(mult)
    k = np.arange(degrees)
    kept = (k > 0) & (amplitude > RESOLVED * amplitude[1])
    log_mult = _log_multiplicity(k, dim)[kept]
    if log_mult.max() > LARGEST_LOG:
        raise ValueError(f"kappa={kappa:g} at D={dim} needs multiplicities above e^{LARGEST_LOG:g}; lower kappa or D")
    sigma = amplitude[kept] * np.exp(-0.5 * log_mult)
    order = np.argsort(-sigma, kind="stable")
    sigma, multiplicity = sigma[order], np.exp(log_mult[order])
    energies = multiplicity * sigma**2
    # E A^2 >= E f_N^2 (Jensen), which rounding may hide where rows are nearly uniform
    total = max(tokens**2 * (density.weight @ second), 1.0 + energies.sum())
    excess = LEADING_VALUE.function(energies, np.minimum(sigma**2, 1.0 - 1e-9), tokens).sum()
    leading = 1.0 + min(excess, 0.5 * (total - 1.0))
    sigma = sigma * np.sqrt((total - leading) / energies.sum())
    return np.append(np.sqrt(leading), sigma), np.append(1.0, multiplicity), density


@lru_cache(maxsize=64)
def _gegenbauer(degrees: int, dim: int, nodes: int) -> Array:
    """Orthonormal Gegenbauer polynomials times the root of the weights, (degrees, nodes), on `sphere_logits` nodes.

    x p_k = b_{k+1} p_{k+1} + b_k p_{k-1}, b_k^2 from the derivation; with the root of the weight
    inside, every value is below 1 in size, so that amplitudes are exact to rounding of the largest.
    """
    density = sphere_logits(1.0, dim, nodes)
    b = np.sqrt(RECURRENCE.function(np.arange(2, degrees), dim))
    b = np.append(np.sqrt(1.0 / dim), b)  # b_1, where the general formula is 0/0 at D = 2
    out = np.zeros((degrees, nodes))
    out[0] = np.exp(0.5 * density.log_weight)
    out[1] = density.values * out[0] / b[0]
    for i in range(2, degrees):
        out[i] = (density.values * out[i - 1] - b[i - 2] * out[i - 2]) / b[i - 1]
    return out


def bessel_ratio(kappa: float, dim: int, degrees: int) -> Array:
    """Ratios I_{nu+k+1}(kappa)/I_{nu+k}(kappa) for k = 0 .. degrees - 1, nu = dim/2 - 1; each in (0, 1)."""
    order = dim / 2.0 - 1.0 + np.arange(degrees + int(40.0 + 8.0 * np.sqrt(kappa)))
    last = order[-1] + 1.0
    ratio = kappa / (
        last + 0.5 + np.hypot(last + 1.5, kappa)
    )  # Amos's bound starts the recurrence; its error contracts
    out = np.empty(order.size)
    for i in range(order.size - 1, -1, -1):
        ratio = SIGMA_RATIO.function(order[i], kappa, ratio)
        out[i] = ratio
    return out[:degrees]


def log_moment(kappa: float, dim: int) -> float:
    """ln E exp(kappa cos) for a uniform direction: ln sum_j (kappa^2/4)^j / (j! (D/2)_j), by its positive series."""
    kappa, dim = _check(kappa, dim)
    j = np.arange(int(kappa + 12.0 * np.sqrt(kappa) + 40.0))
    return float(logsumexp(LOG_TERM.function(j, kappa, dim)))


def entropy_deficit(kappa: float, dim: int) -> float:
    """log N - H of a row in the limit of many keys: kappa I_{nu+1}/I_nu - ln E exp(kappa cos), in nats.

    About s^2/2 for small s^2 = kappa^2/D.
    """
    kappa, dim = _check(kappa, dim)
    return float(max(DEFICIT.function(kappa, bessel_ratio(kappa, dim, 1)[0], log_moment(kappa, dim)), 0.0))


def frobenius_squared(kappa: float, dim: int) -> float:
    """|A|_F^2 in the limit of many keys: E e^{2 kappa cos} / (E e^{kappa cos})^2 = sum multiplicity sigma^2
    (Parseval)."""
    return float(FROBENIUS.function(log_moment(kappa, dim), log_moment(2.0 * kappa, dim)))


def kappa_from_deficit(deficit: ArrayLike, dim: int) -> Array:
    """The kappa whose `entropy_deficit` is the given log N - H (nats), by bisection to relative 1e-12; broadcasts.

    ValueError when a deficit is negative. Deficits below 1e-12 give the smallest kappa used, 1e-6.
    """
    target = in_range("deficit", deficit, 0.0, remedy="an entropy is at most log N: check N and the entropy")
    low, high = np.full(target.shape, 1e-6), np.full(target.shape, 1e4)
    deficits = np.vectorize(lambda kappa: entropy_deficit(kappa, dim), otypes=[float])
    if target.size and target.max() > entropy_deficit(1e4, dim):
        raise ValueError(
            f"deficit={target.max():g} nats exceeds what kappa=1e4 gives at D={dim}; check N and the entropy"
        )
    while np.any(high > low * (1.0 + 1e-12)):
        middle = np.sqrt(low * high)
        below = deficits(middle) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(np.sqrt(low * high))


def logit_variance(kappa: ArrayLike, dim: int) -> Array:
    """Variance of a row of logits over uniform keys: s^2 = kappa^2 / D."""
    return in_range("kappa", kappa, 0.0, remedy="kappa is the largest logit") ** 2 / dim


def _log_multiplicity(k: Array, dim: int) -> Array:
    return np.where(k == 0, 0.0, LOG_MULTIPLICITY.function(np.maximum(k, 1), dim))  # k = 0, D = 2 would be 0 times inf


def _check(kappa: float, dim: int) -> tuple[float, int]:
    if not (np.isfinite(kappa) and kappa > 0.0):
        raise ValueError(f"kappa={kappa} is not a positive finite number; kappa is the largest logit, |q||k|/sqrt(D)")
    if kappa > MAX_KAPPA:
        raise ValueError(f"kappa={kappa:g} exceeds {MAX_KAPPA:g}; lower kappa: such rows are one-hot at any N")
    return float(kappa), count("dim", in_range("dim", dim, 2, MAX_DIM, remedy=_DIMENSION), least=2, remedy=_DIMENSION)
