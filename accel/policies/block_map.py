"""Which blocks of keys a block of queries attends to: pooled scores and their selection. Mathematics only.

The log of the mass of a block of n keys (mean kbar, variance sigma_d^2 in channel d) under a block of queries (mean
qbar) is, to second order in the spread of the logits inside the block,

    log sum_j exp(s q.k_j) ~ log n + s qbar.kbar + (s^2 / 2) sum_d qbar_d^2 sigma_d^2.

The first two terms are the score of Faster VGGT (arXiv 2509.07120); the third is the second cumulant of the logits with
the covariance of the keys taken as diagonal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pooled(NamedTuple):
    """Blocks of n tokens seen as one token each, (B, H, blocks, D), at least float32: mean, variance per channel."""

    mean: Tensor
    variance: Tensor | None


def pool(blocks: Tensor, *, variance: bool = False) -> Pooled:
    """Pool blocks (B, H, blocks, n, D), with the variance if asked for."""
    dtype = torch.float64 if blocks.dtype == torch.float64 else torch.float32
    mean = blocks.mean(3, dtype=dtype)
    if not variance:
        return Pooled(mean, None)
    return Pooled(mean, (blocks - mean.unsqueeze(3)).square_().mean(3))


def block_scores(q_mean: Tensor, keys: Pooled, scale: float) -> tuple[Tensor, Tensor | None]:
    """Log-mass of each key block for each query block, up to log n; and its part of second order.

    The latter is None without variance. q_mean (B, H, query blocks, D); both are (B, H, query blocks, key blocks).
    """
    scores = scale * (q_mean @ keys.mean.transpose(-1, -2))
    if keys.variance is None:
        return scores, None
    second = 0.5 * scale**2 * (q_mean.square() @ keys.variance.transpose(-1, -2))
    return scores + second, second


def select_blocks(
    scores: Tensor, most: Tensor, *, threshold: float | None = None, least: int = 1
) -> tuple[Tensor, Tensor]:
    """Key blocks by descending score (B, H, query blocks, key blocks), and how many are kept (B, H, query blocks).

    `most` (H,) blocks per head; with a threshold, those whose shares p = softmax(scores) sum to at most it (the block
    that crosses is left out, as published), but at least `least` and at most `most`.
    """
    ordered, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    most = most.to(scores.device).reshape(1, -1, 1).expand(order.shape[:3])
    if threshold is None:
        return order, most
    covered = ordered.softmax(-1).cumsum(-1) <= threshold + 1e-5  # 1e-5: shares that sum to 1 do so up to rounding
    return order, torch.minimum(covered.sum(-1).clamp_min(least), most)
