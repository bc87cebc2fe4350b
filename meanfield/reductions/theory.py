"""Predicted errors of reductions on a sample; `monte_carlo` has a function of the same name that carries each out."""

from __future__ import annotations

import numpy as np

from meanfield._checks import in_range
from meanfield.derivations.grid_aliasing import RESULT as GRID_ALIASING
from meanfield.reductions import fill, frames, merge, sparsity, subsample
from meanfield.reductions._arguments import fraction_of_keys
from meanfield.reductions.sample import AttentionSample, ReductionError
from meanfield.reductions.statistics import membership, statistics


def random_subset(sample: AttentionSample, fraction: float) -> ReductionError:
    """Attention to f N random keys, renormalised, at any f N_eff: exact up to a relative 1/(f N) (`thinned_moment`)."""
    return ReductionError.exact(_thinned(sample, fraction))


def random_subset_first_order(sample: AttentionSample, fraction: float) -> ReductionError:
    """`random_subset` by ((1 - f)/f) Q: for f N_eff above about 20."""
    return ReductionError.exact(subsample.subsample_error(fraction, statistics(sample)["weighted_spread"].values))


def common_mode(sample: AttentionSample, fraction: float) -> float:
    """Share of the subsampling error that all queries of the sample have in common, to first order.

    sum_j |mean_i A_ij (v_j - o_i)|^2 / mean_i Q_i: independent of the fraction; e^{-s^2} for many random queries.
    """
    fraction_of_keys(fraction)
    weights, outputs = sample.weights, sample.outputs
    mean = weights.mean(0)[:, None] * sample.values - weights.T @ outputs / len(weights)
    return float((mean**2).sum() / statistics(sample)["weighted_spread"].values.mean())


def control_variate(sample: AttentionSample, fraction: float) -> ReductionError:
    """o_S + (vbar - vbar_S): exact expectations as in `random_subset`, the covariance of both means included."""
    f, count = float(fraction_of_keys(fraction)), len(sample.keys)
    centred = sample.values - sample.mean_value
    sampled = (1.0 - f) / (f * count) * (centred**2).sum(1).mean() * count / (count - 1.0)
    plain = _thinned(sample, fraction)
    products = [
        subsample.thinned_moment(a, a[:, None] * (sample.values - o), centred, f, power=1)
        for a, o in zip(sample.weights, sample.outputs, strict=True)
    ]
    return ReductionError.exact(plain - 2.0 * np.array(products) / (f * count) + sampled)


def mean_fill(sample: AttentionSample, fraction: float, *, count_weight: bool = True) -> ReductionError:
    """The mean of the dropped keys and values appended, with the weight N - M (or 1, `count_weight` False).

    Its weight relative to the kept keys is taken at the mean logit of all keys; the fluctuation of the kept mass and of
    the dropped mean, which moves against the kept one, are exact as in `random_subset`.
    """
    f, count = float(fraction_of_keys(fraction)), len(sample.keys)
    if f == 1.0:
        return ReductionError.exact(np.zeros(len(sample.queries)))
    weight = (1.0 - f) * count if count_weight else min(1.0, (1.0 - f) * count)
    centred = sample.values - sample.mean_value
    errors = []
    for a, o, ratio in zip(sample.weights, sample.outputs, statistics(sample)["mean_ratio"].values, strict=True):
        mass = weight * ratio / count
        moves = a[:, None] * (sample.values - o) - mass / ((1.0 - f) * count) * centred
        offset = mass * (sample.mean_value - o)
        errors.append(
            subsample.thinned_moment(a, moves, moves, f, power=2, fill=mass, left_offset=offset, right_offset=offset)
        )
    return ReductionError.exact(np.array(errors))


def shrinkage(sample: AttentionSample, fraction: float) -> ReductionError:
    """lambda o_S + (1 - lambda) vbar with lambda* = B^2/(B^2 + MSE) of each query, the bias of o_S included."""
    f = float(fraction_of_keys(fraction))
    plain = _thinned(sample, fraction)
    offset = statistics(sample)["mean_offset"].values
    weight = fill.shrinkage_weight(offset, plain)
    bias = []
    for a, o in zip(sample.weights, sample.outputs, strict=True):
        along = (a * ((sample.values - o) @ (sample.mean_value - o)))[:, None]
        bias.append(subsample.thinned_moment(a, along, np.zeros_like(along), f, power=1, right_offset=1.0))
    error = fill.mean_fill_error(weight, offset, plain) + 2.0 * weight * (1.0 - weight) * np.array(bias)
    return ReductionError.exact(np.maximum(error, 0.0))


def sparsity_top(sample: AttentionSample, fraction: float) -> ReductionError:
    """Each query keeps its f N largest logits: `top_error` from s, the slope of the values and sum A^2."""
    found = statistics(sample)
    return ReductionError.exact(
        sparsity.top_error(
            fraction,
            found["logit_std"].values,
            found["slope"].values,
            found["residual"].values,
            1.0 / found["effective_keys"].values,
            len(sample.keys),
        )
    )


def sparsity_blocks(sample: AttentionSample, fraction: float) -> ReductionError:
    """Each query keeps the share f of the blocks (`groups`, of equal size) with the largest mean logit.

    `top_error` with the block deviation s_b, once for the block means of the values (squares sum_b A_b^2) and once for
    the values within blocks (squares sum A^2).
    """
    blocks = len(np.unique(sample.labels("groups")))
    found = statistics(sample)
    std = found["block_std"].values
    between = sparsity.top_error(
        fraction,
        std,
        found["block_slope"].values,
        found["block_residual"].values,
        found["block_squares"].values,
        blocks,
    )
    squares = 1.0 / found["effective_keys"].values
    zero = np.zeros_like(std)
    within = sparsity.top_error(fraction, std, zero, found["inner_variance"].values, squares, len(sample.keys))
    return ReductionError.exact(between + within)


def key_merge(sample: AttentionSample, *, mass: bool = True) -> ReductionError:
    """Keys and values of each of the `groups` replaced by their means, weighted by the group's mass (or not, `mass`).

    `merge_displacement`; without mass also the response to the missing ln m_g. Second order in the spread within
    groups, first order in the spread of ln m_g.
    """
    member = membership(sample.labels("groups"))
    share, size = _shares(sample, member)
    keys, values = share @ sample.keys, share @ sample.values
    logits = sample.queries @ sample.keys.T
    means = sample.queries @ keys.T
    variance = np.maximum((logits**2) @ share.T - means**2, 0.0)
    covariance = np.stack([share @ (row[:, None] * sample.values) for row in logits]) - means[:, :, None] * values
    weighted = size * np.exp(means - means.max(1, keepdims=True))
    weights = weighted / weighted.sum(1, keepdims=True)
    outputs = weights @ values
    displacement = merge.merge_displacement(weights, covariance, variance, values, outputs)
    if not mass:
        change = np.broadcast_to(np.log(size), weights.shape)
        displacement = displacement + merge.softmax_displacement(weights, change, values, outputs)
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
    displacement = merge.softmax_displacement(shared.weights, change, sample.values, shared.outputs)
    return ReductionError.exact((displacement**2).sum(1))


def frame_attention(sample: AttentionSample) -> ReductionError:
    """Each query attends to the keys of its own frame: (1 - rho)^2 |o_rest - o_own|^2, an identity."""
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
    count, height, width = grid_shape(shape, stride, len(sample.keys))
    rows, columns = np.arange(stride) * (height // stride), np.arange(stride) * (width // stride)
    errors = []
    for a, o in zip(sample.weights, sample.outputs, strict=True):
        moves = (a[:, None] * (sample.values - o)).reshape(count, height, width, -1)
        alias = np.fft.fft2(moves, axes=(1, 2))[:, rows][:, :, columns]
        alias[:, 0, 0] = 0.0
        own = (np.abs(alias) ** 2).sum()
        cross = (np.abs(alias.sum(0)) ** 2).sum() - own
        errors.append(GRID_ALIASING.function(own, cross if shared else 0.0))
    return ReductionError.exact(np.array(errors))


def grid_shape(shape: tuple[int, int, int], stride: int, tokens: int) -> tuple[int, int, int]:
    """The checked (frames, height, width) of a grid reduction."""
    count, height, width = (int(in_range("shape", x, 1.0, remedy="give (frames, height, width)")) for x in shape)
    if count * height * width != tokens:
        raise ValueError(f"shape={shape} holds {count * height * width} keys, the sample {tokens}; give its layout")
    if stride < 1 or height % stride or width % stride:
        raise ValueError(f"stride={stride} does not divide the grid {height} x {width}; choose a divisor")
    return count, height, width


def _thinned(sample: AttentionSample, fraction: float) -> np.ndarray:
    """E |sum_S A (v - o)/sum_S A|^2, (n,), with E[M/|S|] = 1 + (1 - f)/M of a random number |S| of keys divided out."""
    f, count = float(fraction_of_keys(fraction)), len(sample.keys)
    errors = []
    for a, o in zip(sample.weights, sample.outputs, strict=True):
        moves = a[:, None] * (sample.values - o)
        errors.append(subsample.thinned_moment(a, moves, moves, f, power=2))
    return np.array(errors) / (1.0 + (1.0 - f) / (f * count))


def _shares(sample: AttentionSample, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (G, N) of the keys in their group's mean, and the groups' masses (G,)."""
    mass = member if sample.log_mass is None else member * np.exp(sample.log_mass)
    size = mass.sum(1)
    return mass / size[:, None], size
