"""Two policies in one layer over ranks: exchanged is what the merge exchanges; the heads' ranks then take the subset.

Sends what `merge` or `query_merge` sends: with `correct` the step is fitted against all rows or keys, and fills need
the mean of the dropped ones. Where neither is so, fewer rows would do.
"""

from __future__ import annotations

from dataclasses import replace

from accel.distributed.attention import by_heads, head_shares, sharded_attend, to_heads
from accel.distributed.merge import Match, SharedGroups, for_each
from accel.policies import Compose, Merge


@sharded_attend.register
def _(policy: Compose, q, k, v, shard, ranks, *, scale, context):
    only = policy.only(shard.layout)
    if only is not None:
        return sharded_attend(only, q, k, v, shard, ranks, scale=scale, context=context)
    first, subset = policy.policies
    merged = isinstance(first, Merge)
    if merged and first.per_head:  # nothing is shared between heads; a shrinkage is one for all
        return by_heads(policy, q, k, v, shard, ranks, scale=scale, context=context)
    heads = head_shares(q.shape[1], ranks.size)[ranks.rank]
    if isinstance(subset.shrinkage, tuple):
        subset.check_heads(q.shape[1])
        subset = replace(subset, shrinkage=subset.shrinkage[heads.start : heads.stop] or None)
        policy = replace(policy, policies=(first, subset))

    def one(q, k, v, context):
        match = Match(shard, ranks)
        whole = first.groups(q, k, shard.layout, context, match) if merged else first.groups(q, shard.layout, match)
        groups = SharedGroups.of(whole, q.shape[1], shard, ranks)
        if not merged:
            k, v = (to_heads(x, shard.tokens, ranks) for x in (k, v))
        tokens = subset.selection(shard.layout, q.device, context)
        return policy.attend_as(groups, tokens, q, k, v, scale)

    return for_each(one, q, k, v, context)
