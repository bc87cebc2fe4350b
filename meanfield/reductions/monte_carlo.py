"""Reductions carried out on a sample: the twin of every function of `theory`, with the same name and arguments.

A reduction that draws keys takes a generator and a number of repeats in addition, and returns standard errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from meanfield._checks import Array, count
from meanfield.reductions._checks import kept_count
from meanfield.reductions.fill import shrinkage_weight
from meanfield.reductions.sample import AttentionSample, ReductionError
from meanfield.reductions.statistics import group_shares, membership, own_mask, statistics
from meanfield.reductions.theory import check_shared, grid_shape
from meanfield.reductions.theory import random_subset as predicted_subset


def random_subset(
    sample: AttentionSample, fraction: float, *, rng: np.random.Generator, repeats: int = 200
) -> ReductionError:
    """Squared error of attention to round(f N) random keys, the same for all queries."""
    return _repeat(sample, fraction, rng, repeats, lambda kept: _kept_output(sample, kept))


def random_subset_first_order(
    sample: AttentionSample, fraction: float, *, rng: np.random.Generator, repeats: int = 200
) -> ReductionError:
    """The same reduction as `random_subset`."""
    return random_subset(sample, fraction, rng=rng, repeats=repeats)


def common_mode(sample: AttentionSample, fraction: float, *, rng: np.random.Generator, repeats: int = 200) -> float:
    """|mean over queries of the error|^2 over the mean squared error, both averaged over draws."""
    check_shared(sample, fraction)
    errors = np.array([_kept_output(sample, kept) - sample.outputs for kept in _draws(sample, fraction, rng, repeats)])
    return float((errors.mean(1) ** 2).sum(-1).mean() / (errors**2).sum(-1).mean())


def control_variate(
    sample: AttentionSample, fraction: float, *, rng: np.random.Generator, repeats: int = 200
) -> ReductionError:
    """Squared error of o_S + vbar - vbar_S."""

    def output(kept: Array) -> Array:
        return _kept_output(sample, kept) + sample.mean_value - sample.values[kept].mean(0)

    return _repeat(sample, fraction, rng, repeats, output)


def mean_fill(
    sample: AttentionSample,
    fraction: float,
    *,
    count_weight: bool = True,
    rng: np.random.Generator,
    repeats: int = 200,
) -> ReductionError:
    """Squared error with one mean key for the dropped ones, of weight N - M or 1."""

    def output(kept: Array) -> Array:
        dropped = np.setdiff1d(np.arange(len(sample.keys)), kept)
        if dropped.size == 0:
            return sample.outputs
        mass = np.log(dropped.size) if count_weight else 0.0
        logits = np.column_stack([sample.logits[:, kept], sample.logits[:, dropped].mean(1) + mass])
        return softmax(logits, axis=1) @ np.vstack([sample.values[kept], sample.values[dropped].mean(0)])

    return _repeat(sample, fraction, rng, repeats, output)


def shrinkage(
    sample: AttentionSample, fraction: float, *, rng: np.random.Generator, repeats: int = 200
) -> ReductionError:
    """Squared error of lambda o_S + (1 - lambda) vbar with the predicted lambda*."""
    offset = statistics(sample)["mean_offset"].values
    weight = shrinkage_weight(offset, predicted_subset(sample, fraction).per_query)[:, None]

    def output(kept: Array) -> Array:
        return weight * _kept_output(sample, kept) + (1.0 - weight) * sample.mean_value

    return _repeat(sample, fraction, rng, repeats, output)


def sparsity_top(sample: AttentionSample, fraction: float) -> ReductionError:
    """Squared error when each query keeps its round(f N) largest logits."""
    scores = sample.logits
    return _masked(sample, _largest(scores, kept_count(fraction, scores.shape[1])))


def sparsity_blocks(sample: AttentionSample, fraction: float) -> ReductionError:
    """Squared error when each query keeps the round(f G) of G groups with the largest mean logit."""
    member = membership(sample.labels("groups"))
    scores = sample.logits @ member.T / member.sum(1)
    blocks = _largest(scores, kept_count(fraction, scores.shape[1]))
    return _masked(sample, blocks @ member > 0.0)


def key_merge(sample: AttentionSample, *, mass: bool = True) -> ReductionError:
    """Squared error with one mean key and value for each of the `groups`."""
    share, log_size = group_shares(sample)
    logits = sample.queries @ (share @ sample.keys).T + (log_size if mass else 0.0)
    return _error(sample, softmax(logits, axis=1) @ share @ sample.values)


def query_merge(sample: AttentionSample) -> ReductionError:
    """Squared error when the queries of a group share the output of their mean."""
    member = membership(sample.labels("query_groups"))
    means = member @ sample.queries / member.sum(1)[:, None]
    merged = AttentionSample(means, sample.keys, sample.values, sample.log_mass)
    return _error(sample, member.T @ merged.outputs)


def frame_attention(sample: AttentionSample) -> ReductionError:
    """Squared error when each query attends to the keys of its own frame only; ValueError when it has none."""
    own = own_mask(sample)
    if not np.all(own.any(1)):
        raise ValueError("a query's own frame holds no key; give keys in the frame of every query")
    return _masked(sample, own)


def grid(
    sample: AttentionSample,
    shape: tuple[int, int, int],
    stride: int,
    *,
    shared: bool = True,
    rng: np.random.Generator,
    repeats: int = 200,
) -> ReductionError:
    """Squared error of regular grids of keys at random offsets, one for all frames (`shared`) or one for each."""
    frames, height, width = grid_shape(shape, stride, len(sample.keys))
    stride, rng = int(stride), _generator(rng)
    index = np.arange(len(sample.keys)).reshape(frames, height, width)
    errors = []
    for _ in range(_repeats(repeats)):
        offsets = (
            np.tile(rng.integers(stride, size=(1, 2)), (frames, 1))
            if shared
            else rng.integers(stride, size=(frames, 2))
        )
        kept = np.concatenate([index[i, y::stride, x::stride].ravel() for i, (y, x) in enumerate(offsets)])
        errors.append(((_kept_output(sample, kept) - sample.outputs) ** 2).sum(1))
    return ReductionError.of_draws(np.array(errors))


def _repeat(
    sample: AttentionSample, fraction: float, rng: np.random.Generator, repeats: int, output: Callable[[Array], Array]
) -> ReductionError:
    draws = _draws(sample, fraction, rng, repeats)
    return ReductionError.of_draws(np.array([((output(kept) - sample.outputs) ** 2).sum(1) for kept in draws]))


def _draws(sample: AttentionSample, fraction: float, rng: np.random.Generator, repeats: int) -> list[Array]:
    kept = kept_count(fraction, len(sample.keys))
    rng = _generator(rng)
    return [rng.permutation(len(sample.keys))[:kept] for _ in range(_repeats(repeats))]


def _repeats(repeats: int) -> int:
    return count("repeats", repeats, least=2, remedy="a standard error needs at least two draws")


def _generator(rng: np.random.Generator) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng={rng!r} is not a generator; give np.random.default_rng(seed)")
    return rng


def _kept_output(sample: AttentionSample, kept: Array) -> Array:
    return softmax(sample.logits[:, kept], axis=1) @ sample.values[kept]


def _largest(scores: Array, count: int) -> Array:
    """Mask of the `count` largest scores of each row."""
    chosen = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask


def _masked(sample: AttentionSample, mask: Array) -> ReductionError:
    return _error(sample, softmax(np.where(mask, sample.logits, -np.inf), axis=1) @ sample.values)


def _error(sample: AttentionSample, outputs: Array) -> ReductionError:
    return ReductionError.exact(((outputs - sample.outputs) ** 2).sum(1))
