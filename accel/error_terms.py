"""What a policy's error is made of, by formula: the error that each policy declares, and how it grows with the frames.

`meanfield.reductions.displacements` has the formulas, a policy says what it does to the keys (what stands in for each,
its groups, its blocks), and the functions here bring both together on a sample of queries of one layer. Nothing runs
the policy. A new policy registers with `error_terms`, and with `class_measure` where its mean measure is not that of
all keys, and with `noise_factor` where more than the number of frames changes its noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, singledispatch
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from accel.layout import TokenLayout
from accel.policies import (
    BlockSparse,
    Compose,
    Context,
    Exact,
    Frame,
    KeySubset,
    Merge,
    PhasedGrid,
    Policy,
    QueryMerge,
    TemporalStride,
)
from accel.policies.block_map import block_scores, pool, select_blocks
from accel.policies.compose import select_rows
from accel.policies.key_subset import Selection
from accel.policies.matching import Groups
from accel.statistics import CLASSES
from meanfield.reductions import AttentionSample
from meanfield.reductions.displacements import (
    GROWTH,
    Displacement,
    growth,
    kept_blocks,
    key_merge,
    places,
    query_merge,
    restored,
    thinning,
)

MAX_DRAWS = 16
"""Variants of a moving grid that are averaged over, at most."""
Formula = Callable[[AttentionSample, int], Displacement]
"""The displacement that a policy makes in one head, from the sample of that head and its index."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled queries (n,), token indices, of one layer with its q, k, v (1, H, N, D), on which formulas are evaluated.

    The softmax rows of the sample are formed once and shared by all policies: H n N numbers in float64.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    queries: Tensor
    context: Context

    @cached_property
    def samples(self) -> tuple[AttentionSample, ...]:
        """One sample per head, with the frame of every key and query."""
        frames = self.layout.frame_of().numpy()
        q, k, v = self.array(self.q[:, :, self.queries.to(self.q.device)]), self.array(self.k), self.array(self.v)
        q = q * self.q.shape[-1] ** -0.5
        return tuple(
            AttentionSample(q[h], k[h], v[h], frames=frames, query_frames=frames[self.own]) for h in range(len(q))
        )

    @property
    def own(self) -> np.ndarray:
        """Each query's token index, (n,)."""
        return self.queries.cpu().numpy()

    @cached_property
    def fixed(self) -> np.ndarray:
        """Frames that are not exchangeable with the others: the query's own, and frame 0; (n, frames)."""
        frame = np.arange(self.layout.frames)
        return (self.own[:, None] // self.layout.tokens_per_frame == frame) | (frame == 0)

    def terms(self, formula: Formula, *, pairs: Literal["all", "near", "none"] = "all") -> np.ndarray:
        """Coefficients of GROWTH of every head and query, (H, n, term)."""
        return np.stack([growth(formula(s, h), self.fixed, pairs=pairs) for h, s in enumerate(self.samples)])

    def no_terms(self) -> np.ndarray:
        """The terms of a policy whose error its mean measure says completely: nothing is added."""
        found = np.zeros((self.q.shape[1], len(self.own), len(GROWTH)))
        found[..., GROWTH.index("mass")] = 1.0
        return found

    @staticmethod
    def array(x: Tensor) -> np.ndarray:
        """(1, H, n, D) -> (H, n, D), float64."""
        return x[0].double().cpu().numpy()


def few_queries(layout: TokenLayout, queries: Tensor, per_frame: int = 16) -> Tensor:
    """At most so many of the sampled queries of each frame, evenly spread: the formulas of many policies cost more."""
    found = queries.reshape(layout.frames, -1)
    step = -(-found.shape[1] // per_frame)
    return found[:, ::step].reshape(-1)


class ClassMeasure(NamedTuple):
    """The mean measure of a policy: the share of its mass that each class of keys has, the weight of a mean key.

    share (2, class): for queries outside frame 0 and in it, see `accel.statistics.CLASSES`. shrinkage: None, or lam of
    an output that is shrunk to the mean value, one or one per head, or "fit".
    """

    share: np.ndarray
    mean_key: float = 0.0
    shrinkage: float | tuple[float, ...] | Literal["fit"] | None = None


@singledispatch
def error_terms(policy: Policy, rows: Rows) -> np.ndarray:
    """Terms of the policy's squared error beside what its mean measure moves, (H, n, term); NaN without a formula."""
    return np.full_like(rows.no_terms(), np.nan)


@singledispatch
def class_measure(policy: Policy, layout: TokenLayout) -> ClassMeasure:
    """The policy's mean measure; the default is that of all keys."""
    return ClassMeasure(np.ones((2, len(CLASSES))))


@singledispatch
def noise_factor(policy: Policy, layout: TokenLayout) -> float:
    """What the terms are proportional to besides their growth with the frames, in any unit."""
    return 1.0


@error_terms.register(Exact)
@error_terms.register(Frame)
def _(policy: Policy, rows: Rows) -> np.ndarray:
    return rows.no_terms()


@class_measure.register
def _(policy: Frame, layout: TokenLayout) -> ClassMeasure:
    """The query's own frame."""
    share = np.ones((2, len(CLASSES)))
    share[:, 3:] = 0.0
    return ClassMeasure(share)


@error_terms.register
def _(policy: KeySubset, rows: Rows) -> np.ndarray:
    """`thinning`. Errors of two frames agree on a fixed grid, not on a moving one; temporal neighbours compensate."""
    masses, own = key_masses(policy, rows.layout), rows.own if policy.own_key else None
    fill = _fill_weight(policy, rows.layout.tokens - policy.kept_keys(rows.layout))
    pairs = "none" if isinstance(policy, PhasedGrid) else "near" if isinstance(policy, TemporalStride) else "all"
    return rows.terms(lambda sample, head: thinning(sample, masses, own, fill=fill), pairs=pairs)


@class_measure.register
def _(policy: KeySubset, layout: TokenLayout) -> ClassMeasure:
    """Restored masses are those of all keys; without, thinned classes have the share that is kept."""
    share = np.ones((2, len(CLASSES)))
    if policy.fill == "shrink":
        return ClassMeasure(share, 0.0, "fit" if policy.shrinkage is None else policy.shrinkage)
    if policy.fill == "mass":
        return ClassMeasure(share)
    mean = key_masses(policy, layout).mean(0).reshape(layout.frames, -1)
    for kind, table in enumerate(np.split(mean, [layout.special], axis=1)):
        if table.size:
            first, others = table[0].mean(), table[1:].mean() if layout.frames > 1 else 1.0
            share[:, 1 + kind] = others, first  # the own frame
            share[:, 3 + kind], share[:, 5 + kind] = first, others
            if kind == 1 and not policy.own_key:
                share[:, 0] = others, first
    return ClassMeasure(share, _fill_weight(policy, layout.tokens - policy.kept_keys(layout)))


@noise_factor.register
def _(policy: TemporalStride, layout: TokenLayout) -> float:
    """A kept frame that stands for m adds m (m - 1) times the variance of a frame, 1/m^2 of it where it has mass 1."""
    frame = policy.stand_in(layout).numpy().reshape(layout.frames, -1)[:, -1] // layout.tokens_per_frame
    size = np.bincount(frame[1:])
    size = size[size > 0].astype(float)
    each = size * (size - 1) if policy.fill in ("mass", "shrink") else (size - 1) / size
    return float(each.sum() / max(layout.frames - 1, 1))


def stand_ins(policy: KeySubset, layout: TokenLayout) -> np.ndarray:
    """`stand_in` of the policy in equally likely variants (other offsets), itself among them: (draws, N)."""
    if not isinstance(policy, PhasedGrid):
        return places(policy.stand_in(layout).numpy())
    period, P = policy.tile**2, layout.tokens_per_frame
    phases = policy.stand_in(replace(layout, frames=period + 1)).numpy().reshape(-1, P) % P
    frame, start = np.arange(layout.frames - 1), np.arange(layout.frames)[:, None] * P
    draws = [phases[1 + (frame + d) % period] for d in range(0, period, -(-period // MAX_DRAWS))]
    return np.stack([(start + np.concatenate([phases[:1], draw])).reshape(-1) for draw in draws])


def key_masses(policy: KeySubset, layout: TokenLayout) -> np.ndarray:
    """Masses of the keys in these variants, zero for dropped ones: (draws, N)."""
    masses = np.stack([np.bincount(row, minlength=layout.tokens) for row in stand_ins(policy, layout)])
    return masses.astype(float) if policy.fill in ("mass", "shrink") else np.minimum(masses, 1.0)


def _fill_weight(policy: KeySubset, dropped: float) -> float:
    """The weight of the mean key for so many dropped tokens."""
    return {"published": min(1.0, dropped), "count": float(dropped)}.get(policy.fill, 0.0)


@error_terms.register
def _(policy: Merge, rows: Rows) -> np.ndarray:
    """`query_merge`, `restored` with `correct`, and `key_merge` at the merged queries: their moves add."""
    groups = policy.groups(rows.q, rows.k, rows.layout, rows.context)
    return rows.terms(_merge_formula(policy, rows, groups, _shared_queries(rows, groups)))


@error_terms.register
def _(policy: QueryMerge, rows: Rows) -> np.ndarray:
    """`query_merge`, `restored` with `correct`."""
    shared = _shared_queries(rows, policy.groups(rows.q, rows.layout))
    return rows.terms(lambda sample, head: _query_displacement(policy, sample, shared[head]))


def _shared_queries(rows: Rows, groups: Groups) -> np.ndarray:
    """The mean query of each sampled query's group, scaled: (H, n, D)."""
    tokens = rows.queries.to(rows.q.device)
    return rows.q.shape[-1] ** -0.5 * rows.array(groups.unmerge(groups.merge(rows.q), tokens))


def _query_displacement(policy: Merge | QueryMerge, sample: AttentionSample, shared: np.ndarray) -> Displacement:
    moved = query_merge(sample, shared)
    return restored(sample, shared, moved) if policy.correct else moved


def _merge_formula(policy: Merge, rows: Rows, groups: Groups, shared: np.ndarray) -> Formula:
    row = groups.row[0].expand(rows.q.shape[1:3]).cpu().numpy()

    def formula(sample: AttentionSample, head: int) -> Displacement:
        at = replace(sample, queries=shared[head], groups=row[head])
        return key_merge(at, mass=policy.mass) + _query_displacement(policy, sample, shared[head])

    return formula


@error_terms.register
def _(policy: Compose, rows: Rows) -> np.ndarray:
    """The moves of the two parts add: the second is evaluated at the queries, and on the rows, of the first."""
    first, second = policy.policies
    if isinstance(first, QueryMerge):
        shared, masses = _shared_queries(rows, first.groups(rows.q, rows.layout)), key_masses(second, rows.layout)
        fill = _fill_weight(second, rows.layout.tokens - second.kept_keys(rows.layout))

        def formula(sample: AttentionSample, head: int) -> Displacement:
            thinned = thinning(replace(sample, queries=shared[head]), masses, fill=fill)
            return thinned + _query_displacement(first, sample, shared[head])

        return rows.terms(formula)
    groups = first.groups(rows.q, rows.k, rows.layout, rows.context)
    shared = _shared_queries(rows, groups)
    merged, tables = _merge_formula(first, rows, groups, shared), stand_ins(second, rows.layout)
    k, v = (rows.array(groups.merge(x)) for x in (rows.k, rows.v))

    def on_rows(sample: AttentionSample, head: int) -> Displacement:
        parts = (groups.row, groups.representative, groups.mass)
        row, token, size = (x[0, head % x.shape[1]].cpu() for x in parts)
        masses = np.stack([_row_masses(second, table, row, token, first.mass) for table in tables])
        weight = size.double().numpy() if first.mass else np.ones(len(token))
        frames = token.numpy() // rows.layout.tokens_per_frame
        at = AttentionSample(shared[head], k[head], v[head], np.log(weight), frames=frames)
        fill = _fill_weight(second, float(weight @ (masses == 0.0).mean(0)))
        own = row.numpy()[rows.own] if second.own_key else None
        return thinning(at, masses, own, fill=fill, bias=True) + merged(sample, head)

    return rows.terms(on_rows)


def _row_masses(policy: KeySubset, stand_in: np.ndarray, row: Tensor, token: Tensor, mass: bool) -> np.ndarray:
    """Masses of merged rows as `Compose` thins them, in units of the mass they have; stand_in is that of the tokens."""
    table = torch.from_numpy(stand_in)
    tokens = Selection(table, table, table, table != torch.arange(len(table)))  # of which two are looked at
    chosen, weight = select_rows(tokens, row, token, mass)
    found, kept = np.zeros(len(token)), chosen.kept.numpy()
    found[kept] = 1.0
    if policy.fill in ("mass", "shrink"):
        found[kept] = chosen.mass.numpy() / (1.0 if weight is None else weight.numpy()[kept])
    return found


@class_measure.register
def _(policy: Compose, layout: TokenLayout) -> ClassMeasure:
    """Of the second; after a `Merge` the terms have the bias, which is one of rows, not of tokens."""
    second = class_measure(policy.policies[1], layout)
    return (
        second if isinstance(policy.policies[0], QueryMerge) else second._replace(share=second.share**0, mean_key=0.0)
    )


@noise_factor.register
def _(policy: Compose, layout: TokenLayout) -> float:
    return noise_factor(policy.policies[1], layout) if isinstance(policy.policies[0], QueryMerge) else 1.0


@error_terms.register
def _(policy: BlockSparse, rows: Rows) -> np.ndarray:
    """`kept_blocks` with nothing for the rest; with stand-ins `key_merge` of the blocks that the query drops."""
    groups, kept, cumulant = _blocks(policy, rows)

    def formula(sample: AttentionSample, head: int) -> Displacement:
        sample = replace(sample, groups=groups)
        if policy.fill == "none":
            return kept_blocks(sample, kept[head])
        return key_merge(sample, merged=~kept[head], cumulant=0.0 if cumulant is None else cumulant[head])

    return rows.terms(formula)


def _blocks(policy: BlockSparse, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The block of every key (N,), keys without one apart; which each query keeps (H, n, G); its cumulants, likewise.

    The policy's own selection, by pooled scores, of the blocks that the sampled queries lie in.
    """
    layout, n, size = rows.layout, policy.key_block, policy.query_block
    H, scale = rows.q.shape[1], rows.q.shape[-1] ** -0.5
    patches = policy.patch_order(layout).to(rows.q.device)
    count, order = len(patches) // n, patches.cpu()
    groups = torch.arange(layout.tokens) + count
    groups[order[: count * n]] = torch.arange(count).repeat_interleave(n)
    _, groups = np.unique(groups.numpy(), return_inverse=True)
    place = torch.full((layout.tokens,), -1).scatter(0, order, torch.arange(len(order)))[rows.queries.cpu()]
    patch = (place >= 0).numpy()
    block, row = torch.unique(place[place >= 0] // size, return_inverse=True)
    wide = torch.promote_types(rows.q.dtype, torch.float32)  # as `pool` does
    means = [rows.q.index_select(2, patches[b * size : (b + 1) * size]).mean(2, dtype=wide) for b in block.tolist()]
    kept = np.ones((H, len(place), groups.max() + 1), dtype=bool)
    if not means:  # special tokens see everything
        return groups, kept, None
    keys = pool(rows.k.index_select(2, patches[: count * n]).unflatten(2, (-1, n)), variance=policy.fill == "cumulant")
    scores, second = block_scores(torch.stack(means, 2), keys, scale)
    most = policy.kept_blocks(layout)
    most = torch.tensor(most if len(most) == H else most * H, device=scores.device)
    least = max(1, int(policy.floor * count + 1e-9))
    order, number = select_blocks(scores, most, threshold=policy.threshold, least=least)
    ranked = (torch.arange(count, device=order.device) < number.unsqueeze(-1)).expand_as(order)
    chosen = torch.zeros_like(ranked).scatter(-1, order, ranked)[0].cpu().numpy()
    kept[:, patch, :count] = chosen[:, row.numpy()]
    if second is None:
        return groups, kept, None
    cumulant = np.zeros(kept.shape)
    cumulant[:, patch, :count] = rows.array(second)[:, row.numpy()]
    return groups, kept, cumulant
