"""Policies that keep a subset of the keys: only the kept keys and values are exchanged, M of N.

What else crosses: for the mean key of the dropped ones, or of all values, a sum over ranks; for a fitted shrinkage, its
few probe queries, whose attention to the keys of each rank goes back to the rank that asked.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from accel.distributed.attention import sharded_attend
from accel.distributed.queries import attend_to_all
from accel.distributed.ranks import Ranks
from accel.distributed.shard import Shard
from accel.policies import Exact, KeySubset
from accel.policies.key_subset import Rows, Selection, spread


@sharded_attend.register
def _(policy: KeySubset, q, k, v, shard, ranks, *, scale, context):
    chosen = policy.selection(shard.layout, q.device, context)
    if len(chosen.kept) == shard.layout.tokens:
        return sharded_attend(Exact(), q, k, v, shard, ranks, scale=scale, context=context)
    key = policy, shard, q.device
    if key not in context.memory:
        context.memory[key] = ShardedRows(shard, ranks, chosen)
    return policy.attend_to(q, k, v, chosen, scale, own_key=policy.own_key, rows=context.memory[key])


class ShardedRows(Rows):
    """The rows of one rank, which are its tokens; the queries likewise. See `Rows`."""

    def __init__(self, shard: Shard, ranks: Ranks, chosen: Selection):
        self.shard, self.ranks = shard, ranks
        self.first = shard.own.start
        starts = torch.tensor(shard.starts, device=chosen.kept.device)
        places = torch.searchsorted(chosen.kept, starts).tolist()  # where the ranks begin among the kept rows
        self.counts = [end - start for start, end in pairwise(places)]
        self.at_hand = chosen.kept[places[ranks.rank] : places[ranks.rank + 1]] - self.first

    def kept(self, chosen: Selection, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.stack([k.index_select(2, self.at_hand), v.index_select(2, self.at_hand)])
        return self.ranks.gather(both, self.counts, dim=3).unbind()

    def total(self, x: Tensor) -> Tensor:
        return self.ranks.sum(x)

    def probe(self, count: int, q: Tensor, k: Tensor, v: Tensor, log_mass: Tensor | None, scale: float):
        own = self.shard.own
        index = spread(self.shard.layout.tokens, count)
        index = (index[(own.start <= index) & (index < own.stop)] - self.first).to(q.device)
        log_mass = None if log_mass is None else log_mass[own]
        return index, attend_to_all(q.index_select(2, index), k, v, self.ranks, log_mass=log_mass, scale=scale)[0]
