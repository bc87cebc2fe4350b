"""Block-sparse attention over ranks: by heads, since every head chooses its own blocks among the keys of all frames.

Sends 4 N C (R - 1) / R^2 elements. The selected blocks alone would not be fewer: over the query blocks and heads of a
rank nearly every block is selected by one.
"""

from __future__ import annotations

from dataclasses import replace

from accel.distributed.attention import by_heads, head_shares, sharded_attend
from accel.policies import BlockSparse


@sharded_attend.register
def _(policy: BlockSparse, q, k, v, shard, ranks, *, scale, context):
    if isinstance(policy.density, tuple) and len(policy.density) > 1:
        policy.check_heads(q.shape[1])
        mine = head_shares(q.shape[1], ranks.size)[ranks.rank]
        if len(mine):  # a rank without heads runs no policy
            policy = replace(policy, density=policy.density[mine.start : mine.stop])
    return by_heads(policy, q, k, v, shard, ranks, scale=scale, context=context)
