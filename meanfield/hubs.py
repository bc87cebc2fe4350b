"""Column statistics of softmax attention with Gaussian keys: what the longest key does to the leading singular value.

Keys y ~ N(0, I_D), queries z ~ N(0, c I_D). Given its norm, column j has the sum c_j = N E[A | y] and the energy
e_j = N E[A^2 | y] (`row_statistics`, averaged over queries); long keys are hubs that many queries attend to. With
columns written as their mean plus residuals of energy d = e - c^2/N in unrelated directions, orthogonal to the
constants on the key side as rows sum to one, A^T A has its largest eigenvalue x = s_1^2 > max d at

    1 - 1/x = <b/(x - d)> - <(c - 1)/(x - d)>^2 / <1/(x - d)>,    b = (c - 1)^2 + d,    <> the mean over keys,

s_1^2 = 1 + <b> to first order, and d of the longest key where that is a hub. The norm of the longest key fluctuates
from draw to draw: its distribution is divided into LEVELS of equal probability.
Source: docs/theory/spectra.md. Approximate (residuals unrelated); measured in experiments/gaussian_spectra.py.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainccinv

from meanfield._checks import Array

LEVELS = 8
"""Quantiles of the longest key."""
BINS = 400
"""Other keys are taken one by one from the longest on, then in groups of geometrically growing size."""


def key_norms(dim: float, tokens: float) -> tuple[Array, Array]:
    """Norms (LEVELS, m) of N Gaussian keys at quantiles of their longest, and how many keys each stands for (m,).

    Exact quantiles of the longest; the others at the midpoints of equal probability below it.
    """
    edges = np.unique(np.round(np.geomspace(1.0, tokens, BINS)))
    count = np.append(1.0, np.diff(edges))
    beyond = -np.expm1(np.log((np.arange(LEVELS) + 0.5) / LEVELS) / tokens)[:, None]  # P(|y| > longest)
    others = (0.5 * (edges[1:] + edges[:-1]) - 0.5) / (tokens - 1.0)
    tail = np.concatenate([beyond, beyond + (1.0 - beyond) * others], axis=1)
    return np.sqrt(2.0 * gammainccinv(0.5 * dim, tail)), count


def second_moments(column_sum: Array, column_energy: Array, count: Array) -> dict[str, Array]:
    """Energy |A|_F^2, leading = s_1^2 and column_quartic = the share of sum s^4 that columns carry, per level.

    column_sum and column_energy (levels, m), for `count` keys each (m,). column_quartic =
    (1 + <b>)^2 + 2 <b d> + sum d^2 is the trace of the square of the model of the module (the constants and the
    diagonal).
    """
    share = count / count.sum()
    total = column_sum / (column_sum @ share)[:, None]  # rows sum to one
    d = column_energy - total**2 / count.sum()
    b = (total - 1.0) ** 2 + d
    return {
        "energy": column_energy @ count,
        "leading": np.array([_largest(*level, share) for level in zip(total, b, d, strict=True)]),
        "column_quartic": (1.0 + b @ share) ** 2 + 2.0 * (b * d) @ share + d**2 @ count,
    }


def _largest(total: Array, b: Array, d: Array, share: Array) -> float:
    def miss(x: float) -> float:
        weight = share / (x - d)
        return 1.0 - 1.0 / x - weight @ b + (weight @ (total - 1.0)) ** 2 / weight.sum()

    low, high = max(d.max(), 1.0) * (1.0 + 1e-9), 2.0 * (1.0 + d.max() + b @ share)
    if miss(low) >= 0.0:
        return low
    while miss(high) < 0.0:
        high *= 2.0
    return float(brentq(miss, low, high, xtol=1e-9))
