"""Merging over ranks: tokens are matched where they are, and the merged measure is exchanged, by heads.

Every rank learns which token joins which; it averages q, k, v over its own members of each group, sends these rows to
the ranks of their heads, which add them up, attend, and send back the rows that each rank has members of. Elements that
a rank sends with n tokens, T rows that they are members of (its own, and those of other ranks' destinations), d
destinations on this rank, c channels compared of F:

    matching    (R - 1) (d c + 2 n): features, similarities (float32 or better), the destination of each token (int32);
                for the channels 4 (R - 1) / R F c (float64; none where all are compared)
    q, k, v     3 C T (1 - h), h = 1 / R the share of the heads
    outputs     C h (sum of the others' T), with `correct` 2 C h: the rows' outputs and their queries
    `correct`   (R - 1) h C (D + 2) (float32 or better): slopes and ranges; and its part of at most 1024 probe queries

where exact attention sends some 2 C n (R - 1). T <= n, and the more tokens of a rank are alike the smaller. Ties of
similarities aside, the groups are those of one process, windows too, since they are found among all destinations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.distributed.attention import by_heads, head_shares, sharded_attend, to_heads, to_ranks
from accel.distributed.ranks import Ranks
from accel.distributed.shard import Shard
from accel.layout import TokenLayout
from accel.policies import Context, Exact, Merge
from accel.policies.matching import SAMPLE, Groups, Matching, spread


@sharded_attend.register
def _(policy: Merge, q, k, v, shard, ranks, *, scale, context):
    if policy.kept_tokens(shard.layout) == shard.layout.tokens:
        return sharded_attend(Exact(), q, k, v, shard, ranks, scale=scale, context=context)
    if policy.per_head:  # a topology for each head: nothing is shared between heads
        return by_heads(policy, q, k, v, shard, ranks, scale=scale, context=context)

    def one(q, k, v, context):
        whole = policy.groups(q, k, shard.layout, context, Match(shard, ranks))
        return policy.attend_as(SharedGroups.of(whole, q.shape[1], shard, ranks), q, k, v, scale)

    return for_each(one, q, k, v, context)


def for_each(one, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """`one(q, k, v, context)` for each element of the batch: each has groups of its own."""
    found = []
    for b in range(q.shape[0]):
        part = slice(b, b + 1)
        tokens = None if context.tokens is None else context.tokens[part]
        memory = context.memory.setdefault(("batch", b), {})
        found.append(one(q[part], k[part], v[part], Context(context.layer, tokens, memory)))
    return torch.cat(found)


@dataclass(frozen=True)
class Match:
    """`Matching.groups` of the whole scene, on every rank, from the features of this rank's tokens."""

    shard: Shard
    ranks: Ranks

    @torch.no_grad()
    def __call__(self, matching: Matching, features: list[Tensor], layout: TokenLayout) -> Groups:
        ranks, tokens, own = self.ranks, self.shard.tokens, self.shard.own
        metric = matching.metric(features, _here(spread(layout.tokens, SAMPLE), own), ranks.sum)
        chosen = matching.destinations(layout)
        counts = [int(part.sum()) for part in chosen.split(tokens)]
        here = chosen[own].nonzero()[:, 0].to(metric.device)
        table = ranks.gather(metric.index_select(2, here), counts, dim=2)
        similarity, stand_in = matching.nearest(metric, table, chosen, layout, own.start)
        similarity = ranks.gather(similarity, tokens, dim=2)
        stand_in = ranks.gather(stand_in.int(), tokens, dim=2).long()  # half the bytes
        return matching.partition(similarity, stand_in, chosen)


@dataclass(frozen=True)
class SharedGroups(Groups):
    """One partition of the tokens of all ranks, as a rank sees it: its own tokens, and all rows of its own heads.

    row (1, 1, n): the place of each own token's row among those that own tokens are members of, `needed`. counts: how
    many rows each rank's tokens are members of; members: these, of one rank after the other, and how many tokens of
    that rank each has. heads: H.
    """

    partition: Groups
    needed: Groups
    counts: tuple[int, ...]
    members: tuple[Tensor, Tensor]
    heads: int
    shard: Shard
    ranks: Ranks

    @classmethod
    def of(cls, whole: Groups, heads: int, shard: Shard, ranks: Ranks) -> SharedGroups:
        """From the partition of all tokens, one for all heads and batch size 1, which every rank has."""
        found = [part.unique(return_inverse=True, return_counts=True) for part in whole.row[0, 0].split(shard.tokens)]
        rows, place, number = (x.view(1, 1, -1) for x in found[ranks.rank])
        return cls(
            row=place,
            representative=whole.representative,
            mass=whole.mass,
            partition=whole,
            needed=Groups(place, rows, number),
            counts=tuple(len(rows) for rows, *_ in found),
            members=(torch.cat([rows for rows, *_ in found]), torch.cat([number for *_, number in found])),
            heads=heads,
            shard=shard,
            ranks=ranks,
        )

    @property
    def whole(self) -> Groups:
        return self.partition

    def merge(self, x: Tensor) -> Tensor:
        """(1, H, n, D) -> (1, own heads, M, D), from each rank's means over its own members."""
        means, (rows, number) = to_heads(self.needed.merge(x), self.counts, self.ranks), self.members
        wide = torch.promote_types(x.dtype, torch.float32)
        total = means.new_zeros(*means.shape[:2], self.mass.shape[-1], means.shape[3], dtype=wide)
        total.index_add_(2, rows, means.to(wide) * number.unsqueeze(-1))
        return (total / self.mass.unsqueeze(-1)).to(x.dtype)

    def take(self, x: Tensor, tokens: Tensor) -> Tensor:
        starts = torch.tensor(self.shard.starts, device=tokens.device)
        counts = torch.searchsorted(tokens, starts).diff().tolist()
        return to_heads(x.index_select(2, _here(tokens, self.shard.own)), counts, self.ranks)

    def fetch(self, x: Tensor) -> Tensor:
        return to_ranks(x.index_select(2, self.members[0]), self.counts, self.heads, self.ranks)

    def all_heads(self, x: Tensor) -> Tensor:
        return self.ranks.gather(x, [len(share) for share in head_shares(self.heads, self.ranks.size)], dim=1)


def _here(index: Tensor, own: slice) -> Tensor:
    """Which of some tokens of the scene are own ones, counted from the first of these."""
    return index[(index >= own.start) & (index < own.stop)] - own.start
