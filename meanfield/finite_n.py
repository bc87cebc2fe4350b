"""The finite-N law of the singular values of softmax attention.

A = (1/N) X Lambda Y^T with population squared singular values lambda_n and features X, Y sampled at N queries and N
keys. If the features behave as independent of unit variance, with T_N(v) = sum_k v s_k^2/(1 + v s_k^2) over the
finite-N s_k and theta = P/N:

    P(w) = sum_n w lambda_n/(1 + w lambda_n),  v = w m(theta)/(1 - theta)^2,  T_N(v) = P(w),  on the branch P < N,

with m = 1 for free features, and m(theta) = exp(c_1 theta + c_2 theta^2) where entries are heavy-tailed
(`meanfield.condensation`).

Spectral sums are integrals over P, without matrices and without the singularity at P = N (integration by parts):

    sum s^p = (2 sin(pi p/2)/(pi p)) integral_0^min(N, rank) v^{-p/2} dP,   0 < p < 2.

The leading mode (sigma = 1, the constant function; larger when there is an attention sink) is not random like the
others: it is kept apart, and the law carries the rest.
Source: docs/theory/finite_n.md, where it is measured against dense SVD. Exact in the limit of independent features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, token_count
from meanfield.derivations.counting_function import RESULT as COUNTING_FUNCTION
from meanfield.derivations.finite_n_law import RESULT as FINITE_N_LAW
from meanfield.derivations.mellin import RESULT as MELLIN
from meanfield.derivations.spectral_quartic import RESULT as SPECTRAL_QUARTIC

STEP = 0.05
"""Spacing of the grids in ln w and ln v."""
START = np.log(1e-9)
"""Where the grids start, as ln(w times the largest lambda)."""
LARGEST_LOG = 650.0
"""The grids end here in any case: e^650 is near the end of float64, and no N reaches it."""
FULL = 1.0 - 1e-15
"""P/N is kept below this in logarithms of 1 - P/N."""
ANGLE = np.pi - 1e-7
"""Argument of v at which singular values are counted; pi is the negative axis, where they are poles."""


class SpectralLaw(ABC):
    """How the spectrum of one head depends on N: P(w) on a grid, and the leading mode.

    A subclass provides log_w (G,) ascending, p (G,) = P(w) ascending from about 0, energy = sum lambda and
    quartic = sum lambda^2 (all without the leading mode), top = the leading singular value, `scale` and
    `singular_values`; where entries are heavy-tailed also heavy_tail = (c_1, c_2) of ln m(theta).
    """

    log_w: Array
    p: Array
    energy: float
    quartic: float
    top: float
    heavy_tail: tuple[float, float] = (0.0, 0.0)

    def leading(self, tokens: ArrayLike) -> Array:
        """The largest singular value at N tokens; shape of `tokens`."""
        return self.top * self.scale(tokens)

    @abstractmethod
    def scale(self, tokens: ArrayLike) -> Array:
        """Factor common to all singular values at N tokens; shape of `tokens`."""

    @abstractmethod
    def singular_values(self, tokens: float, k: int) -> Array:
        """The k largest singular values at N tokens, descending, (k,)."""

    def ranks(self, tokens: ArrayLike) -> dict[str, Array]:
        """Rank measures at N tokens, each in the shape of `tokens`: those of `meanfield.ranks`, frobenius and nuclear.

        ValueError when some N is below 2 or not finite.
        """
        n = token_count(tokens, least=2.0)
        top, scale = self.top, self.scale(n)
        rest = self._sums(n.ravel())
        nuclear, log_sum, energy_log_sum = (part.reshape(n.shape) for part in rest)
        nuclear = nuclear + top
        log_sum = log_sum + top * np.log(top)
        energy = self.energy + top**2
        energy_log_sum = energy_log_sum + top**2 * np.log(top**2)
        quartic = SPECTRAL_QUARTIC.function(self.quartic, self.energy, self.heavy_tail[0], n) + top**4
        return {
            "effective_rank": np.minimum(np.exp(np.log(nuclear) - log_sum / nuclear), n),
            "effective_rank_energy": np.minimum(np.exp(np.log(energy) - energy_log_sum / energy), n),
            "stable_rank": np.minimum(energy / top**2, n),
            "participation_ratio": np.minimum(energy**2 / quartic, n),
            "frobenius": scale * np.sqrt(energy),
            "nuclear": scale * nuclear,
        }

    def _sums(self, n: Array) -> tuple[Array, Array, Array]:
        """sum s, sum s ln s and sum s^2 ln s^2 without the leading mode, at each of n (m,)."""
        stop = min(int(np.searchsorted(self.p, n.max())) + 2, self.p.size)
        log_w, w = self.log_w[:stop], np.exp(self.log_w[:stop])
        capped = np.minimum(self.p[:stop], n[:, None])
        theta = capped / n[:, None]
        left = 1.0 - theta
        c1, c2 = self.heavy_tail
        log_m = theta * (c1 + c2 * theta)
        # beyond FULL log_v is only multiplied by left = 0
        log_v = log_w + log_m + FINITE_N_LAW.function(np.minimum(theta, FULL))
        first = capped[:, 0]
        root = left * np.exp(-0.5 * (log_w + log_m))  # v^{-1/2}
        nuclear = _integral(root, capped) + 2.0 * first / np.sqrt(w[0])
        log_sum = _integral(root * (-0.5 * log_v - 1.0), capped) - first * log_w[0] / np.sqrt(w[0])
        # E[ln s^2] under weights s^2: -(ln v_0) h_0 - integral h dln v, with h = T/(v sum s^2)
        share = capped / (w * self.energy) * np.exp(-log_m) * left
        mean_log = -share[:, 0] * left[:, 0] * log_v[:, 0]
        mean_log = mean_log - _integral(share * left, log_w + log_m) - 2.0 * _integral(share, theta)
        tail = share[:, -1] * left[:, -1]
        mellin = MELLIN.function(1.0)  # its logarithmic derivative at p = 1 is the -1 in log_sum
        return mellin * nuclear, mellin * log_sum, self.energy * (mean_log - tail)


@dataclass(frozen=True, eq=False)
class PopulationLaw(SpectralLaw):
    """The law for a known population: singular values sigma (m,) with multiplicities (m,), the leading one apart.

    sigma is descending and sigma[0] (multiplicity 1) is the leading mode, taken as independent of N. heavy_tail are
    the (c_1, c_2) of ln m(theta), finite; (0, 0) for free features.
    """

    sigma: Array
    multiplicity: Array
    heavy_tail: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        sigma, mult = finite("sigma", self.sigma), finite("multiplicity", self.multiplicity)
        if sigma.ndim != 1 or sigma.shape != mult.shape or sigma.size < 2:
            raise ValueError(
                f"sigma {sigma.shape} and multiplicity {mult.shape} must be equal vectors of at least 2 modes"
            )
        if sigma.min() <= 0.0 or mult.min() <= 0.0 or mult[0] != 1.0 or np.any(np.diff(sigma) > 0.0):
            raise ValueError("sigma must be positive and descending, multiplicities positive, the leading one 1")
        c1, c2 = finite("heavy_tail", self.heavy_tail)
        object.__setattr__(self, "heavy_tail", (float(c1), float(c2)))
        object.__setattr__(self, "sigma", sigma)
        object.__setattr__(self, "multiplicity", mult)

    @property
    def energy(self) -> float:
        """sum of multiplicity * sigma^2 without the leading mode."""
        return float(self.multiplicity[1:] @ self.sigma[1:] ** 2)

    @property
    def quartic(self) -> float:
        """sum of multiplicity * sigma^4 without the leading mode."""
        return float(self.multiplicity[1:] @ self.sigma[1:] ** 4)

    @cached_property
    def log_w(self) -> Array:
        """Grid of ln w on which P is tabulated."""
        largest, least = 2.0 * np.log(self.sigma[1]), 2.0 * np.log(self.sigma[-1])
        return np.arange(START - largest, min(14.0 - least, LARGEST_LOG), STEP)

    @cached_property
    def p(self) -> Array:
        """P(w) on the grid."""
        return self._resolvent(self.log_w.astype(complex))[0].real

    @property
    def top(self) -> float:
        """sigma[0]."""
        return float(self.sigma[0])

    def scale(self, tokens: ArrayLike) -> Array:
        """1: a population does not depend on N."""
        return np.ones(np.shape(tokens))

    def singular_values(self, tokens: float, k: int) -> Array:
        """The k largest singular values: quantiles (j - 1/2) of the law's counting function, after the leading one.

        The counting function #{s^2 > 1/x} = Im Phi(x e^{i pi})/pi, dPhi = T dln v, is in closed form
        (derivations/counting_function.py); w is continued from real v to the negative axis. Approximate: quantiles of
        a limit law (no fluctuation of single values; the second value is 3 to 5 per cent high on spheres of D <= 20 at
        s^2 >= 1), interpolated linearly on a grid of STEP in ln s^2. Zeros fill up when the rank is below k.
        ValueError when k is not within 1 .. N.
        """
        n = float(token_count(tokens, least=2.0))
        if not 1 <= k <= n:
            raise ValueError(f"k={k} is outside 1 .. N={n:g}; ask for at most N singular values")
        levels = np.arange(1, k) - 0.5
        log_v, count = self._count(n, k - 1.0)
        rest = np.interp(levels, count, np.exp(-0.5 * log_v), right=0.0)
        return np.concatenate([self.sigma[:1], np.minimum(rest, self.sigma[0])])

    def _count(self, n: float, needed: float) -> tuple[Array, Array]:
        """Grid of ln(1/s^2) and the number of singular values above s, without the leading one, up to `needed`."""
        low = -2.0 * np.log(self.sigma[1]) - 2.0 * np.log1p(np.sqrt(self.multiplicity[1] / n)) - 2.0
        grids, counts = [np.array([low - STEP])], [np.zeros(1)]
        while counts[-1][-1] < min(needed, n - 0.5) and low < self.log_w[-1]:
            log_v = low + STEP * np.arange(200)
            grids.append(log_v)
            counts.append(self._counting_function(log_v, n))
            low = log_v[-1] + STEP
        count = np.maximum.accumulate(np.concatenate(counts))
        return np.concatenate(grids), count + 1e-9 * np.arange(count.size)

    def _counting_function(self, log_v: Array, n: float) -> Array:
        c1, c2 = self.heavy_tail
        lower, upper = np.full(log_v.shape, self.log_w[0] - 60.0), log_v.copy()
        for _ in range(60):
            middle = 0.5 * (lower + upper)
            theta = self._resolvent(middle.astype(complex))[0].real / n
            stretch = FINITE_N_LAW.function(np.minimum(theta, FULL)) + theta * (c1 + c2 * theta)
            above = (theta >= 1.0) | (middle + stretch > log_v)
            lower, upper = np.where(above, lower, middle), np.where(above, middle, upper)
        z = (0.5 * (lower + upper)).astype(complex)
        angles = np.concatenate([np.linspace(0.0, np.pi - 0.1, 25)[1:], np.pi - 0.1 * 0.5 ** np.arange(1, 20), [ANGLE]])
        for angle in angles:
            for _ in range(4):
                p, slope = self._resolvent(z)
                theta, slope = p / n, slope / n
                miss = z + FINITE_N_LAW.function(theta) + theta * (c1 + c2 * theta) - log_v - 1j * angle
                z = z - miss / (1.0 + slope * (2.0 / (1.0 - theta) + c1 + 2.0 * c2 * theta))
        theta = self._resolvent(z)[0] / n
        log_det = np.log1p(np.exp(z)[:, None] * self.sigma[1:] ** 2) @ self.multiplicity[1:]
        return COUNTING_FUNCTION.function(log_det, theta, n, c1, c2).imag / np.pi

    def _resolvent(self, log_w: Array) -> tuple[Array, Array]:
        """P and dP/dln w at complex ln w."""
        x = log_w[:, None] + 2.0 * np.log(self.sigma[1:])
        y = np.exp(np.minimum(x.real, LARGEST_LOG) + 1j * x.imag)
        part = y / (1.0 + y)
        return part @ self.multiplicity[1:], (part / (1.0 + y)) @ self.multiplicity[1:]


def _integral(values: Array, against: Array) -> Array:
    """Trapezoidal Stieltjes integral along the last axis."""
    return 0.5 * ((values[..., 1:] + values[..., :-1]) * np.diff(against, axis=-1)).sum(-1)
