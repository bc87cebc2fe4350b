"""Softmax attention between Gaussian queries and keys at N tokens: a Gaussian is a mixture of spheres.

Keys whitened, y ~ N(0, I_D), queries z ~ N(0, c I_D), logits z.y. Hermite features have heavy tails, so the law of
`meanfield.finite_n` over-estimates ranks (fivefold at D = 8). Given the norms |z| and |y| the features are spherical
harmonics, which are not heavy-tailed: the norms become classes of `meanfield.mixtures.MixtureLaw`, cut where a sample
of N has them. The kernel of a pair of shells is the rms softmax weight given the logit l, with x ~ N(0, 1),

    F(l)^2 = N^2 E[A^2 | l] = N^2 int_0^inf t e^{2l - t e^l} phi(t)^{N-1} dt,    phi(t) = E exp(-t e^{|z| x}),

which is e^{l - |z|^2/2} for large N and bounded by N: rows that condense stay bounded. Its Gegenbauer coefficients
(Funk-Hecke) are the K_k of the mixture, with the multiplicities of the harmonics. The energy of the bulk is scaled to
the exact E |A|_F^2; second moments beyond it are those of the columns (`meanfield.hubs`).
Source: docs/theory/spectra.md. Approximate; errors against dense SVD in experiments/gaussian_spectra.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import gammainc, gammainccinv, gammaincinv, gammaln, ndtr, ndtri, roots_jacobi

from meanfield._checks import Array, finite, in_range, token_count
from meanfield.closed_forms import gaussian_qk_ranks
from meanfield.condensation import heavy_tail
from meanfield.derivations.gaussian_ratio import RESULT as GEOMETRIC_RATIO
from meanfield.finite_n import PopulationLaw
from meanfield.hubs import key_norms, second_moments
from meanfield.mixtures import MixtureLaw
from meanfield.qk_norm import SMOOTH_DIM
from meanfield.row_statistics import gaussian_logits, row_statistics, sphere_logits

SHELLS = 12
"""Shells of equal norm; twice as many move the effective rank by less than 2 per cent."""
NODES = 160
"""Gauss-Jacobi nodes in the cosine."""
KEY_NODES = 48
"""Norms at which column statistics are computed."""
DEGREES = 80
"""Highest degree considered."""
UNRESOLVED = 1e-10
"""Share of the energy that the degrees left out may carry."""
LOG_STEP = 0.2
"""Spacing in the logarithm of the normaliser."""
LOG_GRID = 0.1
"""Spacing in ln sigma^2 of a population with unequal c_a."""
MATCHED = 0.2
"""Largest c_a at which unequal c_a are matched to an equal one."""
GRID_END = 45.0
"""Smallest ln sigma^2 of a population, below the largest."""


def gaussian_law(tokens: float, covariance_eigenvalues: ArrayLike) -> MixtureLaw:
    """The mixture of shells for N Gaussian queries and keys with the given c_a (D,).

    Its energy is scaled to `exact_energy`; above D = SMOOTH_DIM the heavy tail is that of a sphere of the rms norms.
    Unequal c_a are replaced by `equivalent_isotropic`. ValueError unless N >= 8, c_a >= 0, sum c > 0 and D >= 2.
    """
    n = float(token_count(tokens, least=8.0))
    dim, c = equivalent_isotropic(n, covariance_eigenvalues)
    return _shells(n, dim, c)


def gaussian_ranks(tokens: float, covariance_eigenvalues: ArrayLike) -> dict[str, float]:
    """Rank measures of softmax attention between N Gaussian queries and keys, frobenius and nuclear norm, and
    leading_singular_value; dimensionless.

    Effective ranks and nuclear norm are those of `gaussian_law`, where the longest key counts among the outer shell.
    Stable rank, participation ratio and s_1 are averages over the norm of the longest key (`meanfield.hubs`), the
    energy is exact (equal c_a). Approximate; errors and where it stops: docs/theory/spectra.md. ValueError as there.
    """
    n = float(token_count(tokens, least=8.0))
    dim, c = equivalent_isotropic(n, covariance_eigenvalues)
    law = _shells(n, dim, c)
    energy = law.top**2 + float(np.einsum("k,krs->", law.multiplicity, law.random**2))
    norms, count = key_norms(dim, n)
    moments = second_moments(*column_statistics(n, dim, c, norms), count)
    draws = moments["energy"] * energy / moments["energy"].mean()
    leading = np.minimum(moments["leading"], draws)
    quartic = moments["column_quartic"] + law.row_quartic(n)
    return law.ranks(n) | {
        "stable_rank": float(np.clip((draws / leading).mean(), 1.0, n)),
        "participation_ratio": float(np.clip((draws**2 / quartic).mean(), 1.0, n)),
        "leading_singular_value": float(np.sqrt(leading).mean()),
    }


def sink_leading(tokens: float, covariance_eigenvalues: ArrayLike, query_mean: ArrayLike) -> float:
    """Root mean square of s_1 at N tokens for queries N(m, diag c) with a mean, an attention sink.

    s_1^2 is the closed one (`gaussian_qk_ranks`) with its factor e^V, V = sum m_a^2/(1 - 2 c_a), replaced by
    N E sum A^2 of a row of logits N(0, V): exact for c -> 0, where all rows are alike, and at most N. Approximate for
    c > 0; one draw scatters, as all rows share the keys. ValueError as `gaussian_qk_ranks`, when N < 8, or V > 1e4.
    """
    n, c = float(token_count(tokens, least=8.0)), finite("covariance_eigenvalues", covariance_eigenvalues)
    plain = float(gaussian_qk_ranks(c)["leading_singular_value"])
    tilt = float((finite("query_mean", query_mean) ** 2 / (1.0 - 2.0 * c)).sum())
    if tilt < 1e-9:
        return plain
    return plain * float(np.sqrt(n * row_statistics(gaussian_logits(tilt), n)["participation"]))


def exact_energy(tokens: float, dim: float, c: float) -> float:
    """E |A|_F^2 for N queries z ~ N(0, c I_D) and keys N(0, I_D): given |z| the logits are N(0, |z|^2), so that it is
    N E sum A^2 of `row_statistics`, averaged over |z|. Exact (trapezoidal rule in the normal score of |z|^2: 1e-6)."""
    score = np.arange(-6.0, 6.1, 0.75)
    weight = np.exp(-0.5 * score**2)
    squared = np.maximum(2.0 * c * gammainccinv(dim / 2.0, ndtr(-score)), 1e-9)
    rows = [row_statistics(gaussian_logits(s2), tokens)["participation"] for s2 in squared]
    return float(tokens * (weight @ np.array(rows)) / weight.sum())


def column_statistics(tokens: float, dim: float, c: float, key_norm: Array) -> tuple[Array, Array]:
    """Sum N E[A | y] and energy N E[A^2 | y] of the columns of keys with these norms, in their shape.

    Directions by Gauss-Jacobi quadrature, query norms by shells; logarithms interpolated between KEY_NODES norms.
    """
    share, norm = chi_shells(dim, tokens)
    cosines, weights = roots_jacobi(NODES, (dim - 3.0) / 2.0, (dim - 3.0) / 2.0)
    nodes = np.linspace(key_norm.min(), key_norm.max(), KEY_NODES)
    part, weights = nodes[:, None] * cosines, weights / weights.sum()
    out = []
    for power in (1, 2):
        moment = softmax_weight(np.sqrt(c) * norm, part, tokens, power) ** power
        column = np.einsum("r,rst,t->s", share, moment, weights) * tokens ** (1 - power)
        out.append(np.exp(CubicSpline(nodes, np.log(column))(key_norm)))
    return out[0], out[1]


def _shells(n: float, dim: float, c: float) -> MixtureLaw:
    if dim < 2.0:
        raise ValueError(f"D={dim:g}; shells need at least 2 dimensions, use gaussian_qk_ranks or a probe")
    share, norm = chi_shells(dim, n)
    cosines, weights = roots_jacobi(NODES, (dim - 3.0) / 2.0, (dim - 3.0) / 2.0)
    kernel = softmax_weight(np.sqrt(c) * norm, norm[:, None] * cosines, n)
    harmonics = _gegenbauer(cosines, dim) * (weights / weights.sum())
    kernels = np.einsum("rst,kt->krs", kernel, harmonics)
    mult = _multiplicity(dim)
    energy = mult * np.einsum("r,krs,s->k", share, kernels**2, share)
    total = np.einsum("r,rst,t,s->", share, kernel**2, weights / weights.sum(), share)
    enough = np.flatnonzero(np.cumsum(energy) > (1.0 - UNRESOLVED) * total)
    stop = min(int(enough[0]) + 6, DEGREES) if enough.size else DEGREES
    tail = heavy_tail(sphere_logits(np.sqrt(c) * dim, dim), n) if dim > SMOOTH_DIM else (0.0, 0.0)
    law = MixtureLaw(share, share, kernels[:stop], mult[:stop], tail)
    bulk = float(np.einsum("k,krs->", law.multiplicity, law.random**2))
    factor = np.sqrt((exact_energy(n, dim, c) - law.top**2) / bulk)
    leading = law.weighted[0] - law.random[0]
    weighted = factor * law.random
    weighted[0] += leading
    root = np.sqrt(share)
    return MixtureLaw(share, share, weighted / (root[:, None] * root), law.multiplicity, tail)


def geometric_population(covariance_eigenvalues: ArrayLike) -> tuple[Array, Array]:
    """Population (sigma, multiplicity) of Gaussian queries and keys: sigma^2 = prod_a (1 + r_a^2)^{1/2} r_a^{n_a}.

    See `meanfield.closed_forms.gaussian_qk_ranks`. The n_a are summed over on a grid of LOG_GRID in ln sigma^2 (linear
    binning, so that mean ln sigma^2 is exact), down to e^{-GRID_END} of the largest. ValueError unless 0 <= c_a < 1/2.
    """
    c = finite("covariance_eigenvalues", covariance_eigenvalues)
    leading = gaussian_qk_ranks(c)["leading_singular_value"]
    count = np.zeros(int(GRID_END / LOG_GRID))
    count[0] = 1.0
    for step in -np.log(GEOMETRIC_RATIO.function(c[c > 0.0])) / LOG_GRID:
        position = step * np.arange(int((count.size - 2) / step) + 1)
        floor = position.astype(int)
        single = np.bincount(floor, 1.0 - (position - floor), count.size)
        single += np.bincount(floor + 1, position - floor, count.size)
        count = np.maximum(fftconvolve(count, single)[: count.size], 0.0)
    keep = count > 1e-9
    sigma = leading * np.exp(-0.5 * LOG_GRID * np.arange(count.size))
    return sigma[keep], np.concatenate([[1.0], count[keep][1:]])


def equivalent_isotropic(tokens: float, covariance_eigenvalues: ArrayLike) -> tuple[float, float]:
    """(D', c') of the equal covariance that stands for unequal c_a: the same logit variance D' c' = sum c_a, and D'
    such that the finite-N law of the geometric populations gives both the same effective rank.

    D' is found at c_a scaled down to at most MATCHED, away from the divergence of the population at 1/2. Equal c_a are
    returned as they are; approximate otherwise. ValueError when some c_a is negative or all are 0.
    """
    c = in_range("covariance_eigenvalues", covariance_eigenvalues, 0.0, remedy="a covariance is not negative")
    if c.ndim != 1 or c.size == 0 or c.sum() == 0.0:
        raise ValueError(f"covariance_eigenvalues has shape {c.shape} and sum {c.sum():g}; give the c_a of one head")
    variance = float(c.sum())
    if np.ptp(c) <= 1e-9 * c.max():
        return float(c.size), variance / c.size
    matched = c * min(1.0, MATCHED / c.max())
    target = _plain_log_rank(tokens, *geometric_population(matched))

    def miss(dim: float) -> float:
        return _plain_log_rank(tokens, *_isotropic_population(dim, matched.sum() / dim)) - target

    low, high = max(2.0, variance**2 / float((c**2).sum())), float(c.size)
    if miss(low) >= 0.0 or miss(high) <= 0.0:
        dim = low if miss(low) >= 0.0 else high
    else:
        dim = brentq(miss, low, high, xtol=0.05)
    return dim, variance / dim


def _isotropic_population(dim: float, c: float) -> tuple[Array, Array]:
    """As `geometric_population` for dim (real) equal c, without a grid: multiplicity binom(n + D - 1, n)."""
    r = GEOMETRIC_RATIO.function(c)
    n = np.arange(int(-GRID_END / np.log(r)) + 2)
    mult = np.exp(gammaln(n + dim) - gammaln(dim) - gammaln(n + 1.0))
    return np.sqrt((1.0 + r**2) ** (0.5 * dim) * r**n), np.concatenate([[1.0], mult[1:]])


def _plain_log_rank(tokens: float, sigma: Array, mult: Array) -> float:
    return float(np.log(PopulationLaw(sigma, mult).ranks(tokens)["effective_rank"]))


def chi_shells(dim: float, tokens: float) -> tuple[Array, Array]:
    """Shares and rms norms (SHELLS,) of a standard normal vector: shells even in the normal score, the outer ones with
    half a token each."""
    edge = ndtri(0.5 / tokens)
    quantile = np.concatenate([[0.0], ndtr(np.linspace(edge, -edge, SHELLS - 1)), [1.0]])
    squared = 2.0 * gammaincinv(dim / 2.0, quantile)
    below = np.where(quantile < 1.0, gammainc(dim / 2.0 + 1.0, np.minimum(squared, 1e9) / 2.0), 1.0)
    share = np.diff(quantile)
    return share, np.sqrt(dim * np.diff(below) / share)


def softmax_weight(query_norm: Array, key_part: Array, tokens: float, power: int = 2) -> Array:
    """N E[A^p | l]^{1/p}, F(l) of the module for p = 2, at l = query_norm[r] * key_part[s, t] for keys N(0, I):
    (A,), (B, T) -> (A, B, T); p = 1 or 2."""
    score = np.linspace(-9.0, 9.0, 361)
    density = np.exp(-0.5 * score**2)
    density /= density.sum()
    out = np.empty((query_norm.size, *key_part.shape))
    for r, norm in enumerate(query_norm):
        logits = norm * key_part
        log_z = np.arange(-5.0, np.log(tokens) + 10.0 * norm + 8.0, LOG_STEP)  # t = e^{-log_z}
        lost = -np.expm1(-np.exp(np.minimum(norm * score - log_z[:, None], 50.0))) @ density
        others = np.exp((tokens - 1.0) * np.log1p(-np.minimum(lost, 1.0 - 1e-15)))
        knots = np.linspace(logits.min() - LOG_STEP, logits.max() + LOG_STEP, 60 + int(np.ptp(logits) / LOG_STEP))
        ratio = knots[:, None] - log_z
        moment = LOG_STEP * np.exp(power * ratio - np.exp(np.minimum(ratio, 50.0))) @ others
        log_weight = np.log(tokens) + np.log(np.maximum(moment, 1e-300)) / power
        out[r] = np.exp(CubicSpline(knots, log_weight)(logits))
    return out


def _gegenbauer(cosines: Array, dim: float) -> Array:
    """C_k(t)/C_k(1) for k = 0 .. DEGREES - 1, (DEGREES, T), by the three-term recurrence."""
    out = np.empty((DEGREES, cosines.size))
    out[0], out[1] = 1.0, cosines
    for k in range(1, DEGREES - 1):
        out[k + 1] = ((2.0 * k + dim - 2.0) * cosines * out[k] - k * out[k - 1]) / (k + dim - 2.0)
    return out


def _multiplicity(dim: float) -> Array:
    """Number of harmonics of each degree, for any real dim >= 2."""
    k = np.arange(1.0, DEGREES)
    if dim == 2.0:
        return np.concatenate([[1.0], np.full(k.size, 2.0)])
    log_mult = np.log(2.0 * k + dim - 2.0) + gammaln(k + dim - 2.0) - gammaln(k + 1.0) - gammaln(dim - 1.0)
    return np.concatenate([[1.0], np.exp(log_mult)])
