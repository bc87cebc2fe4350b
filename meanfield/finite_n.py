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
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, token_count
from meanfield.condensation import heavy_tail, regime
from meanfield.derivations.mellin import RESULT as MELLIN
from meanfield.sphere import MAX_DAMPED_KAPPA, damped_spectrum, log_moment, logit_variance, sphere_spectrum

STEP = 0.05
"""Spacing of the grids in ln w and ln v."""
START = np.log(1e-9)
"""Where the grids start, as ln(w times the largest lambda)."""
LARGEST_LOG = 650.0
"""The grids end here in any case: e^650 is near the end of float64, and no N reaches it."""
NEGLIGIBLE = 1e-4
"""Relative excess of the fourth moment, E x^2/(N (E x)^2), below which a sphere is at its limit of many tokens."""
SMOOTH_DIM = 4
"""Up to this D rows of features are smooth in so few dimensions that damping over-corrects the shape of the spectrum
(effective rank 1 to 5 per cent low against below 1 without): there only energy and leading value are corrected."""
NEGLIGIBLE_VARIANCE = 1e-6
"""Logit variances below this leave nothing to correct; 1 + s^2 would lose it in rounding."""
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
        quartic = self.quartic + (2.0 + self.heavy_tail[0]) * self.energy**2 / n + top**4
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
        log_left = np.log(left, out=np.zeros_like(left), where=left > 0.0)
        c1, c2 = self.heavy_tail
        log_m = theta * (c1 + c2 * theta)
        log_v = log_w + log_m - 2.0 * log_left  # where left = 0, only multiplied by it
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

        The counting function #{s^2 > 1/x} = Im Phi(x e^{i pi})/pi with dPhi = T dln v, in closed form
        Phi = sum multiplicity ln(1 + w lambda) - 2N(ln(1 - theta) + theta) + N(c_1 theta^2/2 + 2 c_2 theta^3/3); w is
        continued from real v to the negative axis. Approximate: quantiles of a limit law (no fluctuation of single
        values), interpolated linearly on a grid
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
        c1, c2 = self.heavy_tail
        lower, upper = np.full(log_v.shape, self.log_w[0] - 60.0), log_v.copy()
        for _ in range(60):
            middle = 0.5 * (lower + upper)
            theta = self._resolvent(middle.astype(complex))[0].real / n
            left = np.maximum(1.0 - theta, 1e-300)
            above = (theta >= 1.0) | (middle - 2.0 * np.log(left) + theta * (c1 + c2 * theta) > log_v)
            lower, upper = np.where(above, lower, middle), np.where(above, middle, upper)
        z = (0.5 * (lower + upper)).astype(complex)
        angles = np.concatenate([np.linspace(0.0, np.pi - 0.1, 25)[1:], np.pi - 0.1 * 0.5 ** np.arange(1, 20), [ANGLE]])
        for angle in angles:
            for _ in range(4):
                p, slope = self._resolvent(z)
                theta, slope = p / n, slope / n
                miss = z - 2.0 * np.log(1.0 - theta) + theta * (c1 + c2 * theta) - log_v - 1j * angle
                z = z - miss / (1.0 + slope * (2.0 / (1.0 - theta) + c1 + 2.0 * c2 * theta))
        theta = self._resolvent(z)[0] / n
        log_det = np.log1p(np.exp(z)[:, None] * self.sigma[1:] ** 2) @ self.multiplicity[1:]
        stretch = 0.5 * c1 * theta**2 + 2.0 / 3.0 * c2 * theta**3
        return (log_det + n * (stretch - 2.0 * (np.log(1.0 - theta) + theta))).imag / np.pi

    def _resolvent(self, log_w: Array) -> tuple[Array, Array]:
        """P and dP/dln w at complex ln w."""
        x = log_w[:, None] + 2.0 * np.log(self.sigma[1:])
        y = np.exp(np.minimum(x.real, LARGEST_LOG) + 1j * x.imag)
        part = y / (1.0 + y)
        return part @ self.multiplicity[1:], (part / (1.0 + y)) @ self.multiplicity[1:]


@dataclass(frozen=True, eq=False)
class SphereLaw(PopulationLaw):
    """The law of a QK-normed head: uniform directions on S^{dim-1}, logits kappa cos; sigma_k(N) depends on N.

    sigma and multiplicity are those of the limit of many tokens. At N the population is `sphere.damped_spectrum` and
    m(theta) that of independent entries with the same logits (`condensation.heavy_tail`); for D <= SMOOTH_DIM the
    limit's population with that energy and leading value, m = 1. `ranks` multiplies those of
    the limit by a correction computed at N = 2, 4, 8, ... and interpolated (cubic in ln N, within 1e-3); where the
    correction is negligible, below NEGLIGIBLE, or kappa above MAX_DAMPED_KAPPA, it is 1.
    """

    kappa: float = 0.0
    dim: int = 0

    def ranks(self, tokens: ArrayLike) -> dict[str, Array]:
        """As `SpectralLaw.ranks`."""
        n = token_count(tokens, least=2.0)
        limit = super().ranks(n)
        log_n = np.log2(n.ravel())
        start = np.maximum(np.floor(log_n).astype(int) - 1, 1)
        needed = np.unique(start[:, None] + np.arange(4))
        table = np.array([self._correction(int(j)) for j in needed])  # (nodes, measures)
        index = np.searchsorted(needed, start)[:, None] + np.arange(4)
        weight = _lagrange(log_n - start)
        correction = (weight[:, :, None] * table[index]).sum(1)
        corrected = {name: limit[name] * np.exp(correction[:, i]).reshape(n.shape) for i, name in enumerate(limit)}
        return corrected | {
            name: np.clip(corrected[name], 1.0, n) for name in limit if name not in ("frobenius", "nuclear")
        }

    def leading(self, tokens: ArrayLike) -> Array:
        """s_1 at N tokens, see `sphere.damped_spectrum`."""
        n = token_count(tokens, least=2.0)
        return np.array([self.at(float(x)).top for x in n.ravel()]).reshape(n.shape)

    def singular_values(self, tokens: float, k: int) -> Array:
        """As `PopulationLaw.singular_values`, of the population at this N."""
        law = self.at(float(token_count(tokens, least=2.0)))
        return super().singular_values(tokens, k) if law is self else law.singular_values(tokens, k)

    def regime(self, tokens: ArrayLike) -> np.ndarray:
        """Where rows stand by s^2 = kappa^2/D: dilute, condensing or frozen; see `condensation.regime`."""
        return regime(logit_variance(self.kappa, self.dim), tokens)

    def at(self, tokens: float) -> PopulationLaw:
        """The population at N tokens, itself where it does not differ from the limit."""
        if _limit_reached(self.kappa, self.dim, tokens):
            return self
        sigma, multiplicity, density = damped_spectrum(self.kappa, self.dim, tokens)
        if self.dim > SMOOTH_DIM:
            return PopulationLaw(sigma, multiplicity, heavy_tail(density, tokens))
        energy = multiplicity[1:] @ sigma[1:] ** 2
        return PopulationLaw(np.append(sigma[0], self.sigma[1:] * np.sqrt(energy / self.energy)), self.multiplicity)

    def _correction(self, exponent: int) -> Array:
        return _sphere_correction(self, exponent)


@lru_cache(maxsize=4096)
def _sphere_correction(law: SphereLaw, exponent: int) -> Array:
    """ln of the ranks at N = 2^exponent over those of the limit of many tokens."""
    n = 2.0**exponent
    here = law.at(n)
    limit = PopulationLaw.ranks(law, n)
    if here is law:
        return np.zeros(len(limit))
    ranks = here.ranks(n)
    return np.array([float(np.log(ranks[name] / limit[name])) for name in limit])


def _limit_reached(kappa: float, dim: int, tokens: float) -> bool:
    """Whether damping and heavy tails change nothing visible: E x^2/(N (E x)^2) is below NEGLIGIBLE, x = e^{2l}."""
    if kappa > MAX_DAMPED_KAPPA or kappa**2 < NEGLIGIBLE_VARIANCE * dim:
        return True
    return log_moment(4.0 * kappa, dim) - 2.0 * log_moment(2.0 * kappa, dim) < np.log(NEGLIGIBLE * tokens)


def _lagrange(x: Array) -> Array:
    """Weights (m, 4) of the cubic through 0, 1, 2, 3 at x (m,)."""
    return np.stack(
        [
            -(x - 1.0) * (x - 2.0) * (x - 3.0) / 6.0,
            x * (x - 2.0) * (x - 3.0) / 2.0,
            -x * (x - 1.0) * (x - 3.0) / 2.0,
            x * (x - 1.0) * (x - 2.0) / 6.0,
        ],
        axis=1,
    )


def sphere_law(kappa: float, dim: int) -> SphereLaw:
    """The law of a QK-normed head: uniform directions on S^{dim-1}, logits kappa cos. See `SphereLaw`."""
    sigma, multiplicity = sphere_spectrum(kappa, dim)
    return SphereLaw(sigma, multiplicity, kappa=float(kappa), dim=int(dim))


def sphere_ranks(tokens: ArrayLike, kappa: float, dim: int) -> dict[str, Array]:
    """Rank measures of softmax attention between N uniform directions; see `SpectralLaw.ranks`."""
    return sphere_law(kappa, dim).ranks(tokens)


def condensed(logit_variance: ArrayLike, tokens: ArrayLike) -> Array:
    """Whether s^2 > ln(N)/2: second moments are then set by a few largest weights and the law over-estimates."""
    return finite("logit_variance", logit_variance) > 0.5 * np.log(token_count(tokens))


def _integral(values: Array, against: Array) -> Array:
    """Trapezoidal Stieltjes integral along the last axis."""
    return 0.5 * ((values[..., 1:] + values[..., :-1]) * np.diff(against, axis=-1)).sum(-1)
