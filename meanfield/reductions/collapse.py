"""What each reduction does to the rate of collapse of equiangular tokens.

Everything follows from one number: the mean weight that a token leaves to others. N unit tokens at equal cosines gamma
under x_i' = sum_j A_ij x_j approach each other, on average over pairs, at

    gamma' = 2 kappa (1 - gamma)(1 + (N - 1) gamma)/N,     kappa = N/(N - 1) (1 - mean_i A_ii)

for any row-stochastic A, reduced or not, exactly at that moment (`mean_contraction`); kappa = 1 for uniform attention,
0 for the identity. x = beta g, g = 1 - gamma. All functions broadcast and return kappa, dimensionless; fractions of
tokens are not rounded. Random choices (subsample, mean_fill, top) are averaged over, which is what many layers with
small gains see. Source: docs/theory/reductions.md, collapse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from meanfield._checks import ATTRACTIVE, Array, count, in_range, scalar, token_count
from meanfield.derivations.half_rate import RESULT as HALF_RATE
from meanfield.derivations.mean_contraction import RESULT as MEAN_CONTRACTION
from meanfield.derivations.merged_gap import RESULT as MERGED_GAP
from meanfield.derivations.other_weight import RESULT as OTHER_WEIGHT
from meanfield.derivations.pre_ln_recursion import RESULT as PRE_LN
from meanfield.reductions._checks import AT_LEAST_ONE, fraction_of_keys


def collapse_rate(other_weight: ArrayLike, tokens: ArrayLike) -> Array:
    """kappa = N w/(N - 1) from the mean weight w = 1 - mean_i A_ii that tokens leave to others. Exact."""
    w = in_range("other_weight", other_weight, 0.0, 1.0, remedy="it is one minus the mean diagonal of A")
    return np.asarray(MEAN_CONTRACTION.function(w, token_count(tokens, least=2.0)))


def full(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike) -> Array:
    """No reduction: kappa = N/(N + e^x - 1). Dropping tokens altogether replaces N by what is left, and slows."""
    n = token_count(tokens, least=2.0)
    return collapse_rate(_other(1.0 / n, _gap(spread, beta)), n)


def merge(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, group: ArrayLike) -> Array:
    """Keys and values of groups of m distinct tokens averaged, with or without ln m: never slower than `full`.

    own weight (1/m) e^{x/m}/(e^{x/m} + N/m - 1): averaging shortens the keys, so that attention flattens.
    m(e^{x/m} - 1) < e^x - 1 for m > 1, x > 0, equality at x = 0 or m = 1. ValueError when m is outside [1, N].
    """
    n, m = np.broadcast_arrays(token_count(tokens, least=2.0), _group(group))
    if np.any(m > n):
        raise ValueError(f"group={m[m > n].flat[0]:g} exceeds N={n[m > n].flat[0]:g}; merge at most all tokens")
    other = _other(m / n, MERGED_GAP.function(_gap(spread, beta), m))
    return collapse_rate(1.0 - (1.0 - other) / m, n)


def subsample(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, fraction: ArrayLike) -> Array:
    """Keys of a fresh random share f for every layer, all queries: own weight f e^x/(e^x + f N - 1); never slower.

    A query outside the subset sees the plain mean of the subset. The subset's noise is not in the rate: it moves all
    tokens together (to first order) and is of the second order in the gain. ValueError when f N < 1.
    """
    n, f, kept = _kept(tokens, fraction)
    return collapse_rate(1.0 - f * (1.0 - _other(1.0 / kept, _gap(spread, beta))), n)


def mean_fill(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, fraction: ArrayLike) -> Array:
    """`subsample` with the mean of the dropped keys at weight N - M: kept tokens attend exactly, the others as merged.

    own weight f e^x/(e^x + N - 1) + (1 - f) e^{x/D}/(D e^{x/D} + M), M = f N, D = N - M, at least 1 (one
    dropped token is its own mean); never slower. ValueError when f N < 1.
    """
    n, f, _ = _kept(tokens, fraction)
    x = _gap(spread, beta)
    dropped = np.maximum((1.0 - f) * n, 1.0)
    kept_own = f * (1.0 - _other(1.0 / n, x))
    dropped_own = (1.0 - f) * (1.0 - _other(dropped / n, MERGED_GAP.function(x, dropped))) / dropped
    return collapse_rate(1.0 - kept_own - dropped_own, n)


def top(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, fraction: ArrayLike) -> Array:
    """Each query keeps its f N >= 1 largest logits, ties at random: own weight e^x/(e^x + f N - 1); never faster."""
    n, _, kept = _kept(tokens, fraction)
    return collapse_rate(_other(1.0 / kept, _gap(spread, beta)), n)


def frame_attention(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, frames: ArrayLike) -> Array:
    """Each token attends to its own frame of N/S tokens: the mean over modes of kappa; never faster.

    Within frames kappa is `full` at N/S tokens; between frames it is zero: the frame means do not approach each other.
    """
    n = token_count(tokens, least=2.0)
    per_frame = n / in_range("frames", frames, 1.0, remedy="give at least one frame")
    if np.any(per_frame < 1.0):
        raise ValueError(f"frames={np.max(frames)} exceeds N={np.min(n):g}; a frame holds at least one token")
    return collapse_rate(_other(1.0 / per_frame, _gap(spread, beta)), n)


def redundant(copies: ArrayLike, spread: ArrayLike, beta: ArrayLike) -> Array:
    """Equiangular directions of which some occur more than once: kappa of the mean over distinct pairs, unweighted.

    copies (..., n) >= 0, the numbers (or shares, or masses) of tokens along each of n directions -> (...). Own weight
    of direction a: c_a e^x/(c_a e^x + sum of the others), concave in the share, so that by Jensen equal copies have the
    least kappa, that of n single tokens: unbalanced redundancy accelerates, removing it slows, removing balanced
    redundancy changes nothing. Two directions give A_ab + A_ba.
    """
    c = in_range("copies", copies, 0.0, remedy="give the number of tokens along each direction")
    if c.ndim == 0 or c.shape[-1] < 2 or np.any(c.sum(-1) == 0.0):
        raise ValueError(f"copies has shape {c.shape}; give at least two directions that are not all empty")
    other = _other(c / c.sum(-1, keepdims=True), _gap(spread, beta)[..., None])
    return collapse_rate(other.mean(-1), float(c.shape[-1]))


def half_rate_logit(tokens: ArrayLike) -> Array:
    """beta g at which n tokens collapse at half the rate of uniform attention: ln(1 + n).

    Dropping to n = N/m tokens always lowers kappa; it does so appreciably when beta g exceeds about ln(1 + N/m).
    """
    return np.asarray(HALF_RATE.function(token_count(tokens)))


def merging_change(
    tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, redundancy: ArrayLike, group: ArrayLike
) -> Array:
    """kappa after minus kappa before, merging N tokens of which a share p are copies of one direction.

    Before: one direction with p N copies, (1 - p) N single ones. After: one key for the copies without their mass, the
    single tokens in groups of m, G = (1 - p) N/m. Mean over distinct pairs. Positive: merging accelerates the collapse.
    ValueError unless 1/N <= p <= 1 - m/N (at least one copy and one group).
    """
    n, p, m = np.broadcast_arrays(token_count(tokens, least=2.0), _share(redundancy), _group(group))
    singles = (1.0 - p) * n
    slack = 1e-9 + 1e-15 * n
    if np.any(p * n < 1.0 - slack) or np.any(singles < m - slack):
        worst = p[(p * n < 1.0 - slack) | (singles < m - slack)].flat[0]
        raise ValueError(f"redundancy={worst:g} leaves no copy or no group of m; keep 1/N <= p <= 1 - m/N")
    x, groups = _gap(spread, beta), singles / m
    before = singles * (1.0 - _other(1.0 / n, x)) + 1.0 - _other(p, x)
    single = (1.0 - _other(1.0 / (groups + 1.0), MERGED_GAP.function(x, m))) / m
    after = singles * single + 1.0 - _other(1.0 / (groups + 1.0), x)
    return (before - after) / singles


def merging_accelerates(
    tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike, redundancy: ArrayLike, group: ArrayLike
) -> Array:
    """Whether merging accelerates the collapse of the distinct directions: the sign of `merging_change`."""
    return merging_change(tokens, spread, beta, redundancy, group) > 0.0


def critical_redundancy(tokens: float, spread: float, beta: float, group: float) -> float:
    """The share p* of copies above which `merging_change` is negative: there merging slows the collapse.

    Root by bisection (Brent) on 1/N <= p <= 1 - m/N; the lower end where merging slows already there (always for m = 1,
    pure deduplication), 1 where it accelerates throughout. ValueError unless one copy and one group fit, m <= N - 1.
    """
    tokens = scalar("N", tokens, 2.0, remedy="give the number of tokens")
    group = scalar("group", group, 1.0, tokens - 1.0, remedy="one copy and one group of m make N >= m + 1 tokens")
    low, high = 1.0 / tokens, 1.0 - group / tokens
    change = [float(merging_change(tokens, spread, beta, p, group)) for p in (low, high)]
    if change[0] <= 0.0:
        return low
    if change[1] > 0.0:
        return 1.0
    return float(brentq(lambda p: merging_change(tokens, spread, beta, p, group), low, high, xtol=1e-12))


def merged_spread(
    tokens: int, spread: float, beta: float, group: int, *, gain: float, layers: int, norm: float = 1.0
) -> Array:
    """Spread g = 1 - gamma after each Pre-LN layer x <- x + gain A K with keys merged in fixed groups of m.

    The modes M (mean), D_b (between groups), D_w (within) obey M <- (1 + a/r)^2 M, D_b <- (1 + a delta/r)^2 D_b, D_w
    constant, r^2 = M + D_b + D_w, delta = (1 - e^{-y})/(1 + (G - 1) e^{-y}), y = beta G D_b/((G - 1) r^2), G = N/m.
    Exact for equiangular tokens of equal norm. Returns (layers + 1,), the start first.
    """
    n = float(count("N", tokens, least=2, remedy="give the number of tokens"))
    m = float(count("group", group, least=1, remedy=AT_LEAST_ONE))
    if n % m or n <= m:
        raise ValueError(f"group={group} does not split N={tokens} into two or more groups; choose a smaller divisor")
    g = scalar("spread", spread, 0.0, 1.0, remedy="g = 1 - mean cosine")
    step = scalar("gain", gain, 0.0, remedy="the residual gain of a layer is not negative")
    beta = scalar("beta", beta, 0.0, remedy=ATTRACTIVE)
    radius = scalar("norm", norm, 1e-100, 1e100, remedy="give |x| > 0")
    groups = n / m
    between = (groups - 1.0) / n * g
    within = (n - groups) / n * g
    squares = np.array([1.0 - between - within, between, within]) * radius**2
    found = []
    for _ in range(count("layers", layers, remedy="give the number of layers") + 1):
        total = squares.sum()
        found.append(n / (n - 1.0) * (squares[1] + squares[2]) / total)
        apart = groups / (groups - 1.0) * squares[1] / total
        delta = 1.0 - full(groups, min(apart, 1.0), beta)
        squares = squares * PRE_LN.function(step / np.sqrt(total), np.array([1.0, delta, 0.0]))
    return np.array(found)


def _kept(tokens: ArrayLike, fraction: ArrayLike) -> tuple[Array, Array, Array]:
    """N, f and f N, or ValueError when less than one token is kept."""
    n, f = np.broadcast_arrays(token_count(tokens, least=2.0), fraction_of_keys(fraction))
    kept = f * n
    if np.any(kept < 1.0 - 1e-9):
        raise ValueError(f"fraction={f[kept < 1.0 - 1e-9].flat[0]:g} keeps less than one token; give at least 1/N")
    return n, f, np.maximum(kept, 1.0)


def _other(share: ArrayLike, gap: ArrayLike) -> Array:
    return np.asarray(OTHER_WEIGHT.function(np.asarray(share), gap))


def _gap(spread: ArrayLike, beta: ArrayLike) -> Array:
    g = in_range("spread", spread, 0.0, 2.0, remedy="g = 1 - cosine")
    return g * in_range("beta", beta, 0.0, remedy=ATTRACTIVE)


def _group(group: ArrayLike) -> Array:
    return in_range("group", group, 1.0, remedy=AT_LEAST_ONE)


def _share(redundancy: ArrayLike) -> Array:
    return in_range("redundancy", redundancy, 0.0, 1.0, remedy="it is the share of tokens that are copies")
