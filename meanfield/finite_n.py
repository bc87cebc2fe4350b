"""The finite-N law of the singular values of softmax attention.

A = (1/N) X Lambda Y^T with population squared singular values lambda_n and features X, Y sampled at N queries and N
keys. If the features behave as independent of unit variance, with T_N(v) = sum_k v s_k^2/(1 + v s_k^2) over the
finite-N s_k:

    P(w) = sum_n w lambda_n/(1 + w lambda_n),    v = w/(1 - P(w)/N)^2,    T_N(v) = P(w),    on the branch P < N.

Spectral sums are integrals over P, without matrices and without the singularity at P = N (integration by parts):

    sum s^p = (2 sin(pi p/2)/(pi p)) integral_0^min(N, rank) v^{-p/2} dP,   0 < p < 2.

The leading mode (sigma = 1, the constant function; larger when there is an attention sink) is not random like the
others: it is kept apart, and the law carries the rest.
Source: docs/theory/notes.md 3.6. Exact in the limit of independent features; measured against dense SVD within 2
per cent on spheres while rows are not condensed (s^2 below ln(N)/2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, token_count
from meanfield.sphere import sphere_spectrum

STEP = 0.05
"""Spacing of the grids in ln w and ln v."""
START = np.log(1e-9)
"""Where the grids start, as ln(w times the largest lambda)."""
LARGEST_LOG = 650.0
"""The grids end here in any case: e^650 is near the end of float64, and no N reaches it."""
ANGLE = np.pi - 1e-7
"""Argument of v at which singular values are counted; pi is the negative axis, where they are poles."""


class SpectralLaw(ABC):
    """How the spectrum of one head depends on N: P(w) on a grid, and the leading mode.

    A subclass provides log_w (G,) ascending, p (G,) = P(w) ascending from about 0, energy = sum lambda and
    quartic = sum lambda^2 (all without the leading mode), top = the leading singular value, `scale` and
    `singular_values`.
    """

    log_w: Array
    p: Array
    energy: float
    quartic: float
    top: float

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
        quartic = self.quartic + 2.0 * self.energy**2 / n + top**4
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
        left = 1.0 - capped / n[:, None]
        log_left = np.log(left, out=np.zeros_like(left), where=left > 0.0)
        first = capped[:, 0]
        root = left / np.sqrt(w)  # v^{-1/2}
        nuclear = _integral(root, capped) + 2.0 * first / np.sqrt(w[0])
        log_part = root * (log_left - 0.5 * log_w - 1.0)
        log_sum = _integral(log_part, capped) - first * log_w[0] / np.sqrt(w[0])
        # E[ln s^2] under weights s^2: -(ln v_0) h_0 - integral h dln v, with h = T/(v sum s^2)
        share = capped / (w * self.energy) * left
        mean_log = -share[:, 0] * left[:, 0] * (log_w[0] - 2.0 * log_left[:, 0])
        mean_log = mean_log - _integral(share * left, log_w[None, :]) - 2.0 * _integral(share, capped) / n
        tail = capped[:, -1] / (w[-1] * self.energy) * left[:, -1] ** 2
        return 2.0 / np.pi * nuclear, 2.0 / np.pi * log_sum, self.energy * (mean_log - tail)


@dataclass(frozen=True, eq=False)
class PopulationLaw(SpectralLaw):
    """The law for a known population: singular values sigma (m,) with multiplicities (m,), the leading one apart.

    sigma is descending and sigma[0] (multiplicity 1) is the leading mode, taken as independent of N.
    """

    sigma: Array
    multiplicity: Array

    def __post_init__(self) -> None:
        sigma, mult = finite("sigma", self.sigma), finite("multiplicity", self.multiplicity)
        if sigma.ndim != 1 or sigma.shape != mult.shape or sigma.size < 2:
            raise ValueError(
                f"sigma {sigma.shape} and multiplicity {mult.shape} must be equal vectors of at least 2 modes"
            )
        if sigma.min() <= 0.0 or mult.min() <= 0.0 or mult[0] != 1.0 or np.any(np.diff(sigma) > 0.0):
            raise ValueError("sigma must be positive and descending, multiplicities positive, the leading one 1")
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

        The counting function #{s^2 > 1/x} = Im Phi(x e^{i pi})/pi with dPhi = T dln v, in closed form
        Phi = sum multiplicity ln(1 + w lambda) - 2N(ln(1 - P/N) + P/N); w is continued from real v to the negative
        axis. Approximate: quantiles of a limit law (no fluctuation of single values), interpolated linearly on a grid
        of STEP in ln s^2. Zeros fill up when the rank is below k. ValueError when k is not within 1 .. N.
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
        lower, upper = np.full(log_v.shape, self.log_w[0] - 60.0), log_v.copy()
        for _ in range(60):
            middle = 0.5 * (lower + upper)
            p = self._resolvent(middle.astype(complex))[0].real
            left = np.maximum(1.0 - p / n, 1e-300)
            above = (p >= n) | (middle - 2.0 * np.log(left) > log_v)
            lower, upper = np.where(above, lower, middle), np.where(above, middle, upper)
        z = (0.5 * (lower + upper)).astype(complex)
        angles = np.concatenate([np.linspace(0.0, np.pi - 0.1, 25)[1:], np.pi - 0.1 * 0.5 ** np.arange(1, 20), [ANGLE]])
        for angle in angles:
            for _ in range(4):
                p, slope = self._resolvent(z)
                z = z - (z - 2.0 * np.log(1.0 - p / n) - log_v - 1j * angle) / (1.0 + 2.0 * slope / (n - p))
        p, _ = self._resolvent(z)
        log_det = np.log1p(np.exp(z)[:, None] * self.sigma[1:] ** 2) @ self.multiplicity[1:]
        return (log_det - 2.0 * n * (np.log(1.0 - p / n) + p / n)).imag / np.pi

    def _resolvent(self, log_w: Array) -> tuple[Array, Array]:
        """P and dP/dln w at complex ln w."""
        x = log_w[:, None] + 2.0 * np.log(self.sigma[1:])
        y = np.exp(np.minimum(x.real, LARGEST_LOG) + 1j * x.imag)
        part = y / (1.0 + y)
        return part @ self.multiplicity[1:], (part / (1.0 + y)) @ self.multiplicity[1:]


def sphere_law(kappa: float, dim: int) -> PopulationLaw:
    """The law of a QK-normed head: uniform directions on S^{dim-1}, logits kappa cos. See `meanfield.sphere`."""
    return PopulationLaw(*sphere_spectrum(kappa, dim))


def sphere_ranks(tokens: ArrayLike, kappa: float, dim: int) -> dict[str, Array]:
    """Rank measures of softmax attention between N uniform directions; see `SpectralLaw.ranks`."""
    return sphere_law(kappa, dim).ranks(tokens)


def condensed(logit_variance: ArrayLike, tokens: ArrayLike) -> Array:
    """Whether s^2 > ln(N)/2: second moments are then set by a few largest weights and the law over-estimates."""
    return finite("logit_variance", logit_variance) > 0.5 * np.log(token_count(tokens))


def _integral(values: Array, against: Array) -> Array:
    """Trapezoidal Stieltjes integral along the last axis."""
    return 0.5 * ((values[..., 1:] + values[..., :-1]) * np.diff(against, axis=-1)).sum(-1)
