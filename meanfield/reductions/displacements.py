"""Displacements of the output split over the frames of the keys, and how their square grows with the number of frames.

`theory` gives squared errors on the keys that are there. Here the same formulas keep the vectors: a reduction moves the
output by a sum over frames,

    o_reduced - o = sum_s d_s / sum_s z_s,

with z_s the mass that frame s has left, where all keys together had the mass 1. For exchangeable frames the expectation
of |sum_s d_s|^2 is a quadratic in their number (`growth`): a few frames say what many do. Frames are `sample.frames`,
ascending; float64. No array is larger than (n, N) or (N, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.special import logsumexp, softmax

from meanfield._checks import Array
from meanfield.reductions.sample import AttentionSample, Labels

GROWTH = ("fixed", "linear", "quadratic", "mass", "mass_per_frame")
"""What `growth` returns of every query."""


@dataclass(frozen=True, eq=False)
class Displacement:
    """Moves d_s (draws, n, frames, C) of equally likely draws of a reduction, and masses z_s (n, frames)."""

    moves: Array
    mass: Array

    def __add__(self, other: Displacement) -> Displacement:
        """Two reductions, one after the other, to first order: o_reduced - o adds, the masses left multiply.

        Frames share the mass as in the first, so let that be the one that changes it.
        """
        mine, theirs = (x.mass.sum(1)[:, None] for x in (self, other))
        return Displacement(self.moves * theirs[..., None] + other.moves * mine[..., None], self.mass * theirs)

    @property
    def squares(self) -> Array:
        """|o_reduced - o|^2 on the keys that are there, mean over draws: (n,)."""
        return (self.moves.sum(2) ** 2).sum(2).mean(0) / self.mass.sum(1) ** 2


def growth(found: Displacement, fixed: Array, *, pairs: Literal["all", "near", "none"] = "all") -> Array:
    """Coefficients (n, 5) of GROWTH, from which `squared_error` follows at any number of other frames.

    fixed (n, frames), bool: frames that stay what they are (the query's own, frame 0); the others are exchangeable.
    With moves of mean mu and variance V, n of them and the fixed ones' sum f give E |f + sum_s d_s|^2 = |f|^2 + n (2
    f.mu + V) + n^2 |mu|^2: so with `pairs` "all". "near": moves agree or compensate within a bounded number of frames
    only (a frame stands for its neighbours), so that the cross terms grow like n, and those with f not at all. "none":
    frames are drawn independently and only |d_s|^2 add. Equal to the squares on the frames given (but for "none", which
    takes the mean over more draws); at other numbers unbiased for exchangeable frames and an unchanged o.
    """
    apart = found.moves * fixed[None, :, :, None]
    others = found.moves - apart
    count = (~fixed).sum(1)
    each = np.maximum(count, 1)
    start, total = apart.sum(2), others.sum(2)
    single = (others**2).sum((2, 3)).mean(0)
    cross = 2.0 * (start * total).sum(2).mean(0)
    pair = (total**2).sum(2).mean(0) - single
    first = (start**2).sum(2).mean(0)
    quadratic = np.zeros_like(single)
    if pairs == "none":
        first, linear = (apart**2).sum((2, 3)).mean(0), single / each
    elif pairs == "near":
        first, linear = first + cross, (single + pair) / each
    else:
        quadratic = pair / np.maximum(count * (count - 1), 1)  # one frame has no pair: zero
        linear = (cross + single) / each - quadratic
    mass, per_frame = (found.mass * fixed).sum(1), (found.mass * ~fixed).sum(1) / each
    return np.stack([first, linear, quadratic, mass, per_frame], 1)


def squared_error(coefficients: Array, frames: Array) -> Array:
    """(fixed + n linear + n^2 quadratic) / (mass + n mass_per_frame)^2 with n other frames, three parts: (3, ..., n).

    coefficients (..., n, 5). They are unbiased and noisy: parts of single queries may be negative, means over many not.
    """
    first, linear, quadratic, mass, per_frame = np.moveaxis(coefficients, -1, 0)
    return np.stack([first, frames * linear, frames**2 * quadratic]) / (mass + frames * per_frame) ** 2


def thinning(
    sample: AttentionSample, masses: Array, own: Labels | None = None, *, fill: float = 0.0, bias: bool = False
) -> Displacement:
    """Fixed sets of kept keys: masses (draws, N), zero for a dropped key, of equally likely draws.

    own (n,): the key of each query, where it is there in any draw. The mean measure has the mean of the masses, and one
    more key of the weight `fill`, the mean of the dropped ones. The moves are those about its output; what the mean
    measure itself moves is included with `bias` only. `theory.grid` by a sum over offsets instead of frequencies, for
    any sets. First order in the fluctuation of the kept mass, exact on average over draws.
    """
    masses = np.asarray(masses, dtype=np.float64)
    frames, rows = sample.labels("frames"), np.arange(len(sample.queries))
    drawn, mean = sample.weights.copy(), sample.weights * masses.mean(0)
    if own is not None:
        mean[rows, own] = drawn[rows, own]
    if fill:
        dropped = (masses == 0.0).mean(0)
        number = max(dropped.sum(), 1e-300)
        log_weight = sample.logits @ dropped / number - logsumexp(sample.logits, axis=1)
        each = fill / number * np.exp(log_weight)[:, None]  # what a dropped key has in the mean key
        mean += each * dropped
        drawn -= each
    centre = sample.outputs if bias else mean @ sample.values / mean.sum(1, keepdims=True)
    mass = _frame_sums(frames, mean)
    start = 0.0
    if bias:  # all keys about their own output move nothing; in each frame they would
        start = -_moves(frames, centre, (mean - sample.weights * mean.sum(1, keepdims=True), sample.values))
    if own is not None:
        drawn[rows, own] = 0.0
    start = start + _moves(frames, centre, (drawn * masses.mean(0), sample.values))
    moves = []
    for row in masses:
        kept = np.flatnonzero(row)
        part = (drawn[:, kept] * row[kept], sample.values[kept])
        moves.append(_moves(frames[kept], centre, part, count=mass.shape[1]) - start)
    return Displacement(np.stack(moves), mass)


def places(stand_in: Labels) -> Labels:
    """Equally likely variants (draws, N) of what stands in for each key: the member at the same place of every group.

    stand_in (N,) labels the groups, whose members are in the order of their keys: one draw for each place. A group that
    has fewer places than another takes them in turn.
    """
    _, group, count = np.unique(stand_in, return_inverse=True, return_counts=True)
    order, first = np.argsort(group, kind="stable"), np.cumsum(count) - count
    return np.stack([order[first + draw % count][group] for draw in range(int(count.max()))])


def key_merge(
    sample: AttentionSample, *, mass: bool = True, merged: Array | None = None, cumulant: Array | float = 0.0
) -> Displacement:
    """Keys and values of each of the `groups` replaced by their means, with its mass or not: `theory.key_merge`.

    merged (n, G), bool: the groups that a query sees as one key, the others key by key; all by default. cumulant
    (n, G): what the log-mass of a merged group has in addition, an estimate of half the variance of its logits.
    Second order in the logits' spread within groups. Without mass the lost ln m_g is counted exactly, not to first
    order. A group's move is shared out to its keys.
    """
    frames = sample.labels("frames")
    mean, group, size = _means(sample.labels("groups"))
    values, means = (mean @ sample.values)[group], (sample.queries @ (mean @ sample.keys).T)[:, group]
    spread = sample.logits - means
    excess = 0.5 * (mean @ (spread**2).T).T[:, group] - (cumulant[:, group] if np.ndim(cumulant) else cumulant)
    if merged is not None:
        dropped = merged[:, group]
        means, spread, excess = np.where(dropped, means, sample.logits), spread * dropped, excess * dropped
    weights = softmax(means + (cumulant[:, group] * dropped if np.ndim(cumulant) else cumulant), axis=1)
    parts = [(weights, values)]
    if merged is not None:
        parts = [(weights * dropped, values), (weights * ~dropped, sample.values)]
    output = sum(w @ x for w, x in parts)
    excess = excess - (weights * excess).sum(1, keepdims=True)
    moves = -_moves(frames, output, (weights * spread, sample.values), *((w * excess, x) for w, x in parts))
    if mass:
        return Displacement(moves[None], _frame_sums(frames, weights))
    light = weights / size[group]
    total = light.sum(1, keepdims=True)
    moves = total[..., None] * moves + _moves(frames, output, (light - total * weights, values))
    return Displacement(moves[None], _frame_sums(frames, light))


def query_merge(sample: AttentionSample, shared: Array) -> Displacement:
    """The query i replaced by `shared`[i], (n, D), the mean of its group: `theory.query_merge`, first order."""
    at = AttentionSample(shared, sample.keys, sample.values, sample.log_mass, frames=sample.frames)
    change = sample.logits - at.logits
    weights = at.weights * (change - (at.weights * change).sum(1, keepdims=True))
    frames = at.labels("frames")
    return Displacement(-_moves(frames, at.outputs, (weights, at.values))[None], _frame_sums(frames, at.weights))


def restored(sample: AttentionSample, shared: Array, merged: Displacement) -> Displacement:
    """`query_merge`'s displacement when the output is moved by lam (q_i - `shared`[i]) W, W the mean derivative.

    W = mean_i Cov_A(k, v) over the queries of the sample, one matrix for all of them; lam in [0, 1] is the least-
    squares step. What is left is how the derivatives differ from their mean.
    """
    at = AttentionSample(shared, sample.keys, sample.values, sample.log_mass)
    slope = (at.keys.T * at.weights.mean(0)) @ at.values - (at.weights @ at.keys).T @ at.outputs / len(shared)
    step = (sample.queries - shared) @ slope
    missing = -merged.moves.sum((0, 2))
    energy = (step**2).sum()
    lam = np.clip((step * missing).sum() / energy, 0.0, 1.0) if energy > 0.0 else 0.0
    share = merged.mass / merged.mass.sum(1, keepdims=True)
    return Displacement(merged.moves + lam * share[:, :, None] * step[:, None], merged.mass)


def kept_blocks(sample: AttentionSample, kept: Array) -> Displacement:
    """Each query keeps the `groups` marked in kept (n, G), bool: (1 - rho)(o_kept - o_rest), an identity.

    It is applied to the measure of group means, m_g e^{q.k_g} at v_g, which pooled statistics of the groups give: exact
    where groups hold equal keys.
    """
    mean, group, size = _means(sample.labels("groups"))
    values = mean @ sample.values
    weights = softmax(sample.queries @ (mean @ sample.keys).T + np.log(size), axis=1)
    output = weights @ values
    each = (weights * kept / size)[:, group]
    frames = sample.labels("frames")
    change = each - each.sum(1, keepdims=True) * (weights / size)[:, group]
    return Displacement(_moves(frames, output, (change, values[group]))[None], _frame_sums(frames, each))


def _means(labels: Labels) -> tuple[csr_array, Labels, Array]:
    """The averaging matrix (G, N) of the groups in the order of their labels, each key's group, the sizes (G,)."""
    _, group, size = np.unique(labels, return_inverse=True, return_counts=True)
    tokens = np.arange(len(labels))
    return csr_array((1.0 / size[group], (group, tokens)), shape=(len(size), len(labels))), group, size.astype(float)


def _slices(frames: Labels, count: int | None) -> list[slice]:
    """The keys of each frame, which follow one another."""
    count = int(frames.max()) + 1 if count is None else count
    edges = np.searchsorted(frames, np.arange(count + 1))
    return [slice(*edge) for edge in pairwise(edges)]


def _frame_sums(frames: Labels, weights: Array, count: int | None = None) -> Array:
    """sum over the keys of each frame, (n, N) -> (n, frames)."""
    return np.stack([weights[:, keys].sum(1) for keys in _slices(frames, count)], 1)


def _moves(frames: Labels, output: Array, *parts: tuple[Array, Array], count: int | None = None) -> Array:
    """sum_{j in s} w_ij (x_j - o_i) over parts (w (n, N), x (N, C)): (n, frames, C)."""
    found = 0.0
    for weights, values in parts:
        sums = np.stack([weights[:, keys] @ values[keys] for keys in _slices(frames, count)], 1)
        found = found + sums - _frame_sums(frames, weights, count)[:, :, None] * output[:, None]
    return found
