"""Global attention among the tokens of all ranks, each rank holding the queries of its own frames.

`sharded_attend` dispatches on the class of the policy; what a policy sends is its measure in reduced form:

    exact             keys and values pass round a ring, `attend` by `attend` joined by `combine`
    frame             nothing
    others            see the files of this folder; what has no form of its own is exchanged by heads, or gathered
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from torch import Tensor, cat

from accel.attend import attend, combine
from accel.distributed.ranks import Ranks
from accel.distributed.shard import Shard
from accel.policies import Context, Exact, Frame, Policy


@singledispatch
def sharded_attend(
    policy: Policy, q: Tensor, k: Tensor, v: Tensor, shard: Shard, ranks: Ranks, *, scale: float, context: Context
) -> Tensor:
    """The output of `policy.attend` on the whole scene for this rank's queries, (B, H, n, D), to rounding.

    q, k, v (B, H, n, D): this rank's tokens. A policy without a form of its own gets everything from everybody, which
    is right and sends the most.
    """
    return by_gathering(policy, q, k, v, shard, ranks, scale=scale, context=context)


@sharded_attend.register
def _(policy: Exact, q, k, v, shard, ranks, *, scale, context):
    found = None
    for _, (keys, values) in ranks.ring(shard.tokens, k, v):
        out, lse = attend(q, keys, values, scale=scale)
        part = out.to(lse.dtype), lse  # not rounded again at every turn
        found = part if found is None else combine(*found, *part)
    return found[0].to(q.dtype)


@sharded_attend.register
def _(policy: Frame, q, k, v, shard, ranks, *, scale, context):
    return policy.attend(q, k, v, shard.local, scale=scale, context=context)


def by_gathering(policy: Policy, q, k, v, shard, ranks, *, scale, context) -> Tensor:
    """Every rank gets all tokens, runs the policy on all queries and keeps the outputs of its own."""
    q, k, v = (ranks.gather(x, shard.tokens, dim=2) for x in (q, k, v))
    if context.tokens is not None:
        context.tokens = ranks.gather(context.tokens, shard.tokens, dim=1)
    return policy.attend(q, k, v, shard.layout, scale=scale, context=context)[:, :, shard.own]


def by_heads(policy: Policy, q, k, v, shard, ranks, *, scale, context) -> Tensor:
    """Every rank gets all tokens of its share of the heads, and sends the outputs back to where the queries are.

    For policies that treat the heads separately; sends 4 N C (R - 1) / R^2 elements. Heads that the ranks do not
    divide are shared out unevenly.
    """
    H, own = q.shape[1], head_shares(q.shape[1], ranks.size)[ranks.rank]
    q, k, v = (to_heads(x, shard.tokens, ranks) for x in (q, k, v))
    out = policy.attend(q, k, v, shard.layout, scale=scale, context=context) if len(own) else q
    return to_ranks(out, shard.tokens, H, ranks)


def head_shares(heads: int, size: int) -> list[range]:
    """The heads that each of `size` ranks gets."""
    return [range(heads * rank // size, heads * (rank + 1) // size) for rank in range(size)]


def to_heads(x: Tensor, counts: Sequence[int], ranks: Ranks) -> Tensor:
    """(B, H, counts[rank], D) -> (B, this rank's heads, sum of the counts, D): the rows of all ranks."""
    heads = head_shares(x.shape[1], ranks.size)
    like = [x.new_empty(x.shape[0], len(heads[ranks.rank]), n, x.shape[3]) for n in counts]
    return cat(ranks.exchange([x[:, h.start : h.stop] for h in heads], like), 2)


def to_ranks(x: Tensor, counts: Sequence[int], heads: int, ranks: Ranks) -> Tensor:
    """(B, this rank's heads, sum of the counts, D) -> (B, heads, counts[rank], D): undoes `to_heads`."""
    shares = head_shares(heads, ranks.size)
    like = [x.new_empty(x.shape[0], len(h), counts[ranks.rank], x.shape[3]) for h in shares]
    return cat(ranks.exchange(x.split(list(counts), 2), like), 1)
