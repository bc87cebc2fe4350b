"""Query merging over ranks: the merged queries, and the keys and values as they are, are exchanged by heads.

Beside what the matching sends (see `merge`), C elements (1 - h) (2 n + T) for k, v and the rows of queries that own
queries are members of, and the outputs' C h (sum of the others' T), with `correct` and the rest of what `merge` sends.
"""

from __future__ import annotations

from accel.distributed.attention import sharded_attend, to_heads
from accel.distributed.merge import Match, SharedGroups, for_each
from accel.policies import Exact, QueryMerge


@sharded_attend.register
def _(policy: QueryMerge, q, k, v, shard, ranks, *, scale, context):
    if policy.kept_queries(shard.layout) == shard.layout.tokens:
        return sharded_attend(Exact(), q, k, v, shard, ranks, scale=scale, context=context)

    def one(q, k, v, context):
        groups = SharedGroups.of(policy.groups(q, shard.layout, Match(shard, ranks)), q.shape[1], shard, ranks)
        k, v = (to_heads(x, shard.tokens, ranks) for x in (k, v))
        return policy.attend_as(groups, q, k, v, scale)

    return for_each(one, q, k, v, context)
