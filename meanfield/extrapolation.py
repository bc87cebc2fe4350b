"""Extrapolation of a measured spectrum in N by the finite-N law, without a model of the tokens.

From the singular values s_k at N_0 tokens, T_{N_0}(v) = sum_k v s_k^2/(1 + v s_k^2) is known, hence the population:
w = v (1 - T/N_0)^2 and P(w) = T, resolved while P is well below N_0. Beyond that the tail is an assumption: P goes on
as a power of w, P ~ w^b. One probe takes the local slope; a second, smaller probe calibrates it. b <= 1 always (each
term of P has a slope below 1); beyond P = 2 N_0, where nothing was measured, b <= 1/2, since the population of bounded
tokens is summable, sum sigma < infinity (docs/theory/prediction.md). Otherwise ranks could grow faster than N. An
attention sink (s_1 well above 1, growing with N) tilts all rows alike and scales the whole spectrum: it enters norms,
not ranks.
Source: docs/theory/notes.md section 3.6. Exact for i.i.d. tokens where P is resolved; the tail is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from meanfield._checks import TINY, Array, in_range, scalar, token_count
from meanfield.finite_n import START, STEP, SpectralLaw
from meanfield.ranks import effective_rank

RESOLVED = 0.3
"""P(w) is taken from the probe up to this share of N_0."""
SLOPE_WINDOW = 30
"""Grid points (1.5 in ln v) over which the local slope of the tail is fitted."""
TAIL = 90.0
"""How far the tail is continued, in ln w: with b = 1/2 up to P = e^45 N_0, more than any N."""
SLOPE_RANGE = (0.01, 1.0)
"""Range of the slope b = d ln P/d ln w of the tail: from saturated to 1, which no population exceeds."""
REACH = 2.0
"""The slope is free up to P = REACH N_0, where a second probe can calibrate it; beyond, b <= SUMMABLE."""
SUMMABLE = 0.5
"""The largest slope of a summable population, sum sigma < infinity."""
SIZE_RANGE = (1e-100, 1e100)
"""Range of the two largest singular values, so that fourth powers stay within float64."""


@dataclass(frozen=True, eq=False)
class ProbeLaw(SpectralLaw):
    """The law for singular values measured at `probe_tokens` tokens; see the module.

    values: (n,) all singular values of one head's attention, sorted here. tail_factor multiplies the local slope
    d ln P/d ln w of the tail, which stays within SLOPE_RANGE; calibrated: whether a second probe determined it. The
    largest value is apart: s_1 (N/N_0)^growth_exponent, at most sqrt(N) (which holds for every softmax matrix).
    ValueError on non-finite, negative or too few values, a head of rank one, N_0 below their number, a factor that is
    not positive or an exponent outside [0, 1/2].
    """

    values: Array
    probe_tokens: float
    tail_factor: float = 1.0
    growth_exponent: float = 0.0
    calibrated: bool = False

    def __post_init__(self) -> None:
        values = in_range("singular values", self.values, 0.0, remedy="singular values are not negative")
        if values.ndim != 1 or values.size < 8:
            raise ValueError(f"singular values of shape {values.shape}: give all of one head's, at least 8")
        values = np.sort(values)[::-1]
        in_range("the two largest singular values", values[:2], *SIZE_RANGE, remedy="a head of rank one has no tail")
        scalar("probe_tokens", self.probe_tokens, 2.0, remedy="N_0 counts the tokens of the probe")
        scalar("tail_factor", self.tail_factor, TINY, remedy="it multiplies a slope")
        scalar("growth_exponent", self.growth_exponent, 0.0, 0.5, remedy="s_1 grows at most as sqrt(N)")
        if values.size > self.probe_tokens:
            raise ValueError(
                f"{values.size} singular values at N={self.probe_tokens:g} tokens; N counts all tokens of the probe"
            )
        object.__setattr__(self, "values", values)

    @property
    def energy(self) -> float:
        """sum s^2 without the leading mode; the law keeps it at every N."""
        return float((self.values[1:] ** 2).sum())

    @property
    def quartic(self) -> float:
        """Population sum of lambda^2, leading mode apart: sum s^4 - 2 (sum s^2)^2/N_0, at least a tenth of sum s^4."""
        finite_n = float((self.values[1:] ** 4).sum())
        return max(finite_n - 2.0 * self.energy**2 / self.probe_tokens, 0.1 * finite_n)

    @property
    def log_w(self) -> Array:
        """Grid of ln w: the resolved part, then the tail."""
        return self._resolved_and_tail[0]

    @property
    def p(self) -> Array:
        """P(w) on the grid."""
        return self._resolved_and_tail[1]

    @property
    def slope(self) -> float:
        """Local slope d ln P/d ln w at the end of the resolved part, positive, before factor and limits."""
        log_w, p = self._resolved
        return max(float(np.polyfit(log_w[-SLOPE_WINDOW:], np.log(p[-SLOPE_WINDOW:]), 1)[0]), 1e-3)

    @cached_property
    def _resolved(self) -> tuple[Array, Array]:
        squares = self.values[1:] ** 2
        squares = squares[squares > 0.0]
        log_v = START - np.log(squares[0]) + STEP * np.arange(2000)
        p = _resolvent(squares, log_v, RESOLVED * self.probe_tokens)
        log_v = log_v[: p.size]
        log_w = log_v + 2.0 * np.log1p(-p / self.probe_tokens)
        rising = np.flatnonzero(np.diff(log_w) <= 0.0)
        stop = int(rising[0]) + 1 if rising.size else log_w.size
        return log_w[:stop], p[:stop]

    @cached_property
    def _resolved_and_tail(self) -> tuple[Array, Array]:
        log_w, p = self._resolved
        ahead = STEP * np.arange(1, int(TAIL / STEP))
        slope = np.clip(self.tail_factor * self.slope, *SLOPE_RANGE)
        bend = max(np.log(REACH * self.probe_tokens / p[-1]) / slope, 0.0)
        rise = slope * np.minimum(ahead, bend) + min(slope, SUMMABLE) * np.maximum(ahead - bend, 0.0)
        return np.concatenate([log_w, log_w[-1] + ahead]), np.concatenate([p, p[-1] * np.exp(rise)])

    @property
    def top(self) -> float:
        """The leading singular value of the probe."""
        return float(self.values[0])

    def scale(self, tokens: ArrayLike) -> Array:
        """(N/N_0)^growth_exponent, such that s_1 stays between 1 (row sums are 1) and sqrt(N)."""
        n = token_count(tokens)
        return np.clip(self.top * (n / self.probe_tokens) ** self.growth_exponent, 1.0, np.sqrt(n)) / self.top

    def singular_values(self, tokens: float, k: int) -> Array:
        """The k largest singular values at N: the measured ones carried at equal P, s_j (1 - j/N)/(1 - j/N_0).

        v = w/(1 - P/N)^2 at equal w moves 1/sqrt(v) by that factor; at position j, P is about j. Good for k well below
        N and N_0. ValueError when k exceeds half of either or the number of values.
        """
        n = float(token_count(tokens, least=2.0))
        limit = int(min(self.values.size, 0.5 * n, 0.5 * self.probe_tokens))
        if not 1 <= k <= limit:
            raise ValueError(
                f"k={k} is outside 1 .. {limit}, what a probe of {self.probe_tokens:g} tokens gives at N={n:g}"
            )
        position = np.arange(1, k) - 0.5
        carried = self.values[1:k] * (1.0 - position / n) / (1.0 - position / self.probe_tokens)
        return self.scale(n) * np.minimum.accumulate(np.concatenate([self.values[:1], carried]))


def one_probe_law(values: ArrayLike, tokens: float) -> ProbeLaw:
    """The law from the singular values (n,) of one head at `tokens` tokens; tail slope as measured, s_1 fixed."""
    return ProbeLaw(values, tokens)


def two_probe_law(small: ArrayLike, small_tokens: float, large: ArrayLike, large_tokens: float) -> ProbeLaw:
    """The law from two probes of one head: the tail factor carries the effective rank of the smaller to the larger.

    The factor solves erank_law(N_large; small probe) = erank(large) with the slope within SLOPE_RANGE. When there is no
    solution the slope is the nearer end of it, and `calibrated` is False. s_1 grows as the power of N seen between the
    probes, exponent within [0, 1/2]. ValueError unless small_tokens < large_tokens, and as `ProbeLaw`.
    """
    first = one_probe_law(small, small_tokens)
    second = one_probe_law(large, large_tokens)
    if not small_tokens < large_tokens:
        raise ValueError(f"probes at N={small_tokens:g} and N={large_tokens:g}: the first must be the smaller one")
    growth = np.log(second.values[0] / first.values[0]) / np.log(large_tokens / small_tokens)
    exponent = float(np.clip(growth, 0.0, 0.5))
    target = float(np.log(effective_rank(second.values)))

    def miss(log_factor: float) -> float:
        law = ProbeLaw(first.values, first.probe_tokens, float(np.exp(log_factor)))
        return float(np.log(law.ranks(large_tokens)["effective_rank"])) - target

    slopes = first.slope, second.slope
    low, high = np.log(SLOPE_RANGE[0] / max(slopes)), np.log(SLOPE_RANGE[1] / min(slopes))
    at_low, at_high = miss(low), miss(high)
    calibrated = bool(at_low * at_high < 0.0)
    if calibrated:
        log_factor = brentq(miss, low, high, xtol=1e-3)
    else:
        log_factor = low if abs(at_low) < abs(at_high) else high
    return ProbeLaw(second.values, second.probe_tokens, float(np.exp(log_factor)), exponent, calibrated)


def _resolvent(squares: Array, log_v: Array, limit: float) -> Array:
    """T(v) on the leading part of the grid where it stays below `limit`, in blocks."""
    parts: list[Array] = []
    for start in range(0, log_v.size, 100):
        y = np.exp(log_v[start : start + 100, None]) * squares
        part = (y / (1.0 + y)).sum(-1)
        parts.append(part)
        if part[-1] >= limit:
            break
    p = np.concatenate(parts)
    return p[: max(int(np.searchsorted(p, limit)), SLOPE_WINDOW)]
