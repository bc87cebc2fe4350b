"""Collapse in depth of distinct tokens next to copies of one direction, with and without merging."""

from __future__ import annotations

import numpy as np

from meanfield._checks import ATTRACTIVE, Array, count, scalar
from meanfield.reductions._checks import AT_LEAST_ONE


def redundant_spread(
    singles: int, copies: float, spread: float, beta: float, group: int | None, *, gain: float, layers: int
) -> Array:
    """Spread 1 - mean cosine between the n + 1 directions after each Pre-LN layer x <- x + gain A K, start first.

    n single tokens and `copies` copies of one more direction, all directions at cosine 1 - spread, norm 1. `group` None
    attends to all tokens; m gives the copies one key without their mass and averages the single tokens in fixed groups
    of m. Five inner products close the dynamics (a token with itself, its group, the others, the copies; the copies
    with themselves). Exact for equiangular starts, V = I; -> (layers + 1,). ValueError when m does not divide n or a
    count is not whole.
    """
    n, merged = float(count("singles", singles, least=2, remedy="give the number of single tokens")), group is not None
    m = float(count("group", 1 if group is None else group, least=1, remedy=AT_LEAST_ONE))
    if n % m:
        raise ValueError(f"group={group} does not divide singles={singles}; choose a divisor")
    mass = scalar("copies", copies, 1.0, remedy="give at least one copy")
    held = 1.0 if merged else mass
    gamma = 1.0 - scalar("spread", spread, 0.0, 1.0, remedy="g = 1 - mean cosine")
    b = scalar("beta", beta, 0.0, remedy=ATTRACTIVE)
    step = scalar("gain", gain, 0.0, remedy="the residual gain of a layer is not negative")
    depth = count("layers", layers, remedy="give the number of layers")
    own, mate, far, copy, cross = 1.0, gamma, gamma, 1.0, gamma
    found = []
    for _ in range(depth + 1):
        cosine_cross = cross / np.sqrt(own * copy)
        pairs = n * ((m - 1.0) * mate + (n - m) * far) / own / 2.0 + n * cosine_cross
        found.append(1.0 - pairs / (n * (n + 1.0) / 2.0))
        lead = (own + (m - 1.0) * mate) / m / own
        to_group, to_far, to_copy = _softmax(b * np.array([lead, far / own, cosine_cross]), [1.0, n / m - 1.0, held])
        from_copy, from_single = _softmax(b * np.array([1.0, cosine_cross]), [held, n / m])
        self_part = 1.0
        group_part = step * (to_group - to_far) / m / np.sqrt(own)
        all_part = step * to_far / m / np.sqrt(own)
        copy_part = step * to_copy * held / np.sqrt(copy)
        keep = 1.0 + step * from_copy * held / np.sqrt(copy)
        pull = step * from_single / m / np.sqrt(own)
        group_sum = own + (m - 1.0) * mate
        total = group_sum + (n - m) * far

        def product(
            pair: float,
            to_sum: float,
            sums: float,
            parts: tuple[float, ...] = (self_part, group_part, all_part, copy_part),
            context: tuple[float, ...] = (total, cross, copy),
        ) -> float:
            """New inner product of two tokens from theirs, of a token with the other's group, and of both groups."""
            p, q, r, s = parts
            t, x, c = context
            mixed = 2.0 * p * (q * to_sum + r * t + s * x) + 2.0 * q * m * (r * t + s * x)
            return p * p * pair + q * q * sums + mixed + r * n * (r * t + 2.0 * s * x) + s * s * c

        new_cross = (self_part + group_part * m + all_part * n) * (keep * cross + pull * total)
        new_cross += copy_part * (keep * copy + pull * n * cross)
        new_copy = keep**2 * copy + 2.0 * keep * pull * n * cross + pull**2 * n * total
        own, mate, far = (
            product(own, group_sum, m * group_sum),
            product(mate, group_sum, m * group_sum),
            product(far, m * far, m * m * far),
        )
        cross, copy = new_cross, new_copy
    return np.array(found)


def _softmax(logits: Array, masses: list[float]) -> Array:
    """Attention per unit of mass, so that sum(masses * result) = 1."""
    weights = np.exp(logits - logits.max())
    return weights / (weights @ np.array(masses))
