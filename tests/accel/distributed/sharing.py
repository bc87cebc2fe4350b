"""A policy on q, k, v that are shared out over ranks, beside the same in one process."""

from __future__ import annotations

import torch

from accel.distributed import Ranks, Shard, sharded_attend
from accel.layout import TokenLayout
from accel.policies import Context, Policy
from tests.accel.distributed.processes import run
from tests.accel.policies.inputs import qkv

UNEVEN = TokenLayout(frames=7, special=2, grid_h=4, grid_w=5)  # 4 and 3 frames, or 2, 2, 2 and 1


def shared_out(size: int, policies: list[Policy], dtype: torch.dtype, layout: TokenLayout = UNEVEN):
    """For each policy (the output joined over `size` ranks, the bytes that each rank sent)."""
    found = run(size, on_a_rank, policies, layout, dtype)
    return [
        (torch.cat([out for out, _ in ranks], 2), [sent for _, sent in ranks]) for ranks in zip(*found, strict=True)
    ]


def on_a_rank(policies: list[Policy], layout: TokenLayout, dtype: torch.dtype):
    ranks = Ranks()
    shard = Shard(layout, ranks.rank, ranks.size)
    own = [x[:, :, shard.own] for x in qkv(layout, dtype)]
    found = []
    for policy in policies:
        before = ranks.sent
        out = sharded_attend(policy, *own, shard, ranks, scale=0.3, context=Context())
        found.append((out, ranks.sent - before))
    return found


def in_one_process(policy: Policy, dtype: torch.dtype, layout: TokenLayout = UNEVEN) -> torch.Tensor:
    return policy.attend(*qkv(layout, dtype), layout, scale=0.3)
