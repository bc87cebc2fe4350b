"""Predicted errors of reductions on a sample; `monte_carlo` has a function of the same name that carries each out."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from meanfield._checks import count
from meanfield.derivations.grid_aliasing import RESULT as GRID_ALIASING
from meanfield.reductions import fill, frames, merging, sparsity, subsample
from meanfield.reductions._checks import kept_count
from meanfield.reductions.sample import AttentionSample, ReductionError
from meanfield.reductions.statistics import group_shares, membership, statistics


def random_subset(sample: AttentionSample, fraction: float) -> ReductionError:
    """Attention to round(f N) random keys, renormalised: exact at any number of keys and N_eff (`subset_moment`)."""
    return ReductionError.exact(_subset_errors(sample, kept_count(fraction, len(sample.keys))))


def random_subset_first_order(sample: AttentionSample, fraction: float) -> ReductionError:
    """`random_subset` by ((1 - f)/f) Q: for f N_eff above about 20."""
    f = kept_count(fraction, len(sample.keys)) / len(sample.keys)
    return ReductionError.exact(subsample.subsample_error(f, statistics(sample)["weighted_spread"].values))


def common_mode(sample: AttentionSample, fraction: float) -> float:
    """Share of the subsampling error that all queries of the sample have in common, to first order.

    sum_j |mean_i A_ij (v_j - o_i)|^2 / mean_i Q_i: independent of the fraction; e^{-s^2} for many random queries.
    ValueError when all keys are kept, or the values agree to rounding: there is no error to share.
    """
    check_shared(sample, fraction)
    weights, outputs = sample.weights, sample.outputs - sample.mean_value
    mean = weights.mean(0)[:, None] * (sample.values - sample.mean_value) - weights.T @ outputs / len(weights)
    return float((mean**2).sum() / statistics(sample)["weighted_spread"].values.mean())


def control_variate(sample: AttentionSample, fraction: float) -> ReductionError:
    """o_S + (vbar - vbar_S): exact as `random_subset`, the covariance of both means included."""
    total = len(sample.keys)
    kept = kept_count(fraction, total)
    centred = sample.values - sample.mean_value
    sampled = (1.0 / kept - 1.0 / total) * (centred**2).sum(1).mean() * total / (total - 1.0)
    products = [
        subsample.subset_moment(a, a[:, None] * (sample.values - o), centred, kept, power=1)
        for a, o in zip(sample.weights, sample.outputs, strict=True)
    ]
    errors = _subset_errors(sample, kept) - 2.0 * np.array(products) / kept + sampled
    return ReductionError.exact(np.maximum(errors, 0.0))


def mean_fill(sample: AttentionSample, fraction: float, *, count_weight: bool = True) -> ReductionError:
    """The mean of the D = N - M dropped keys and values appended, with the weight D (or 1, `count_weight` False).

    The sum over all subsets is exact, with the kept mass and the dropped mean that moves against it; the fill's weight
    is approximate, taken at the mean logit of all keys. Relative error of order s^2/D (s the logits' deviation), for
    which D should exceed about 20 s^2. One dropped key is its own mean: no error.
    """
    total = len(sample.keys)
    kept = kept_count(fraction, total)
    dropped = total - kept
    if dropped <= 1:
        return ReductionError.exact(np.zeros(len(sample.queries)))
    centred = sample.values - sample.mean_value
    errors = []
    for a, o, ratio in zip(sample.weights, sample.outputs, statistics(sample)["mean_ratio"].values, strict=True):
        mass = (dropped if count_weight else 1.0) * ratio / total
        moves = a[:, None] * (sample.values - o) - mass / dropped * centred
        offset = mass * (sample.mean_value - o)
        errors.append(
            subsample.subset_moment(a, moves, moves, kept, power=2, fill=mass, left_offset=offset, right_offset=offset)
        )
    return ReductionError.exact(np.maximum(np.array(errors), 0.0))


def shrinkage(sample: AttentionSample, fraction: float) -> ReductionError:
    """lambda o_S + (1 - lambda) vbar with lambda* = B^2/(B^2 + MSE) of each query, the bias of o_S included: exact."""
    kept = kept_count(fraction, len(sample.keys))
    plain = _subset_errors(sample, kept)
    offset = statistics(sample)["mean_offset"].values
    weight = fill.shrinkage_weight(offset, plain)
    bias = []
    for a, o in zip(sample.weights, sample.outputs, strict=True):
        along = (a * ((sample.values - o) @ (sample.mean_value - o)))[:, None]
        bias.append(subsample.subset_moment(a, along, np.zeros_like(along), kept, power=1, right_offset=1.0))
    error = fill.mean_fill_error(weight, offset, plain) + 2.0 * weight * (1.0 - weight) * np.array(bias)
    return ReductionError.exact(np.maximum(error, 0.0))


def sparsity_top(sample: AttentionSample, fraction: float) -> ReductionError:
    """Each query keeps its round(f N) largest logits: `top_error` from s, the slope of the values and sum A^2."""
    found = statistics(sample)
    return ReductionError.exact(
        sparsity.top_error(
            kept_count(fraction, len(sample.keys)) / len(sample.keys),
            found["logit_std"].values,
            found["slope"].values,
            found["residual"].values,
            1.0 / found["effective_keys"].values,
            len(sample.keys),
        )
    )


def sparsity_blocks(sample: AttentionSample, fraction: float) -> ReductionError:
    """Each query keeps the round(f G) of G blocks (`groups`, of equal size) with the largest mean logit.

    `top_error` with the block deviation s_b, once for the block means of the values (squares sum_b A_b^2) and once for
    the values within blocks (squares sum A^2).
    """
    blocks = len(np.unique(sample.labels("groups")))
    kept = kept_count(fraction, blocks) / blocks
    found = statistics(sample)
    std = found["block_std"].values
    between = sparsity.top_error(
        kept,
        std,
        found["block_slope"].values,
        found["block_residual"].values,
        found["block_squares"].values,
        blocks,
    )
    squares = 1.0 / found["effective_keys"].values
    zero = np.zeros_like(std)
    within = sparsity.top_error(kept, std, zero, found["inner_variance"].values, squares, len(sample.keys))
    return ReductionError.exact(between + within)


def key_merge(sample: AttentionSample, *, mass: bool = True) -> ReductionError:
    """Keys and values of each of the `groups` replaced by their means, weighted by the group's mass (or not, `mass`).

    `merge_displacement`; without mass also the response to the missing ln m_g. Second order in the spread within
    groups, first order in the spread of ln m_g.
    """
    share, log_size = group_shares(sample)
    keys, values = share @ sample.keys, share @ sample.values
    logits = sample.queries @ sample.keys.T
    means = sample.queries @ keys.T
    variance = np.maximum((logits**2) @ share.T - means**2, 0.0)
    covariance = np.stack([share @ (row[:, None] * sample.values) for row in logits]) - means[:, :, None] * values
    weights = softmax(means + log_size, axis=1)
    outputs = weights @ values
    displacement = merging.merge_displacement(weights, covariance, variance, values, outputs)
    if not mass:
        change = np.broadcast_to(log_size, weights.shape)
        displacement = displacement + merging.softmax_displacement(weights, change, values, outputs)
    return ReductionError.exact((displacement**2).sum(1))


def query_merge(sample: AttentionSample) -> ReductionError:
    """The queries of each of the `query_groups` share the output of their mean: |J (q_i - qbar)|^2, J = Cov_A(v, k).

    First order in the logits' change; J is taken at the mean query.
    """
    member = membership(sample.labels("query_groups"))
    means = (member @ sample.queries) / member.sum(1)[:, None]
    nearest = member.T @ means
    shared = AttentionSample(nearest, sample.keys, sample.values, sample.log_mass)
    change = (sample.queries - nearest) @ sample.keys.T
    displacement = merging.softmax_displacement(shared.weights, change, sample.values, shared.outputs)
    return ReductionError.exact((displacement**2).sum(1))


def frame_attention(sample: AttentionSample) -> ReductionError:
    """Each query attends to the keys of its own frame: (1 - rho)^2 |o_rest - o_own|^2, an identity.

    ValueError when a query's own frame holds no key, or none of the mass in float64.
    """
    sample.labels("query_frames"), sample.labels("frames")
    found = statistics(sample)
    return ReductionError.exact(frames.frame_error(found["own_mass"].values, found["rest_offset"].values))


def grid(sample: AttentionSample, shape: tuple[int, int, int], stride: int, *, shared: bool = True) -> ReductionError:
    """Every `stride`-th row and column of keys kept in each frame, keys ordered as shape = (frames, height, width).

    Averaged over the grid's offsets: the power of u = A (v - o) at the alias frequencies k of the grid (multiples of
    height/stride and width/stride other than zero), |sum_frames u_hat(k)|^2 when all frames share one offset
    (`shared`), sum_frames |u_hat(k)|^2 when each frame draws its own. First order in the fluctuation of the kept mass.
    ValueError unless the stride divides height and width and shape holds all keys.
    """
    frame_count, height, width = grid_shape(shape, stride, len(sample.keys))
    stride = int(stride)
    rows, columns = np.arange(stride) * (height // stride), np.arange(stride) * (width // stride)
    errors = []
    for a, o in zip(sample.weights, sample.outputs, strict=True):
        moves = (a[:, None] * (sample.values - o)).reshape(frame_count, height, width, -1)
        alias = np.fft.fft2(moves, axes=(1, 2))[:, rows][:, :, columns]
        alias[:, 0, 0] = 0.0
        own = (np.abs(alias) ** 2).sum()
        cross = (np.abs(alias.sum(0)) ** 2).sum() - own
        errors.append(GRID_ALIASING.function(own, cross if shared else 0.0))
    return ReductionError.exact(np.array(errors))


def grid_shape(shape: tuple[int, int, int], stride: int, tokens: int) -> tuple[int, int, int]:
    """The checked (frames, height, width) of a grid reduction."""
    remedy = "give shape = (frames, height, width) and a stride, whole numbers"
    if np.shape(shape) != (3,):
        raise ValueError(f"shape={shape!r} is not three numbers; {remedy}")
    frames, height, width = (count("shape", x, least=1, remedy=remedy) for x in shape)
    if frames * height * width != tokens:
        raise ValueError(f"shape={shape} holds {frames * height * width} keys, the sample {tokens}; give its layout")
    step = count("stride", stride, least=1, remedy=remedy)
    if height % step or width % step:
        raise ValueError(f"stride={stride} does not divide the grid {height} x {width}; choose a divisor")
    return frames, height, width


def check_shared(sample: AttentionSample, fraction: float) -> int:
    """The number of kept keys of a common mode, or ValueError when subsampling makes no error."""
    kept = kept_count(fraction, len(sample.keys))
    spread = np.abs(sample.values - sample.mean_value).max()
    if kept == len(sample.keys) or spread <= 1e-13 * np.abs(sample.values).max():
        raise ValueError(
            f"fraction={fraction:g} of values that differ by {spread:g} makes no error; drop keys that differ"
        )
    return kept


def _subset_errors(sample: AttentionSample, kept: int) -> np.ndarray:
    """E |sum_S A (v - o)/sum_S A|^2 over the subsets S of `kept` keys, (n,)."""
    errors = []
    for a, o in zip(sample.weights, sample.outputs, strict=True):
        moves = a[:, None] * (sample.values - o)
        errors.append(subsample.subset_moment(a, moves, moves, kept, power=2))
    return np.maximum(np.array(errors), 0.0)
