"""Block-sparse attention on 2 and 4 ranks."""

import pytest
import torch

from accel.distributed import Ranks, Shard, sharded_attend
from accel.distributed.attention import head_shares
from accel.errors import AccelError
from accel.policies import BlockSparse, Context
from tests import tolerances
from tests.accel.distributed.processes import run
from tests.accel.distributed.sharing import UNEVEN, in_one_process, shared_out
from tests.accel.policies.inputs import B, D, H, qkv

POLICIES = list(BlockSparse.examples())


@pytest.mark.parametrize("size", [2, 4])  # 4: two ranks without heads
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_one_process_and_sends_its_heads_once(dtype, size):
    """Examples have a density for each head, of which every rank needs its own."""
    assert any(isinstance(policy.density, tuple) for policy in POLICIES)
    for policy, (out, sent) in zip(POLICIES, shared_out(size, POLICIES, dtype), strict=True):
        torch.testing.assert_close(out, in_one_process(policy, dtype), rtol=0, atol=tolerances.ROUNDING[str(dtype)])
        for rank, got in enumerate(sent):
            share, own = len(head_shares(H, size)[rank]) / H, Shard(UNEVEN, rank, size).tokens[rank]
            assert got == B * H * D * dtype.itemsize * (3 * own * (1 - share) + share * (UNEVEN.tokens - own))


def refused_on_a_rank():
    ranks = Ranks()
    shard = Shard(UNEVEN, ranks.rank, ranks.size)
    own, policy = [x[:, :, shard.own] for x in qkv(UNEVEN)], BlockSparse((0.3, 0.4, 0.5), query_block=8, key_block=4)
    with pytest.raises(AccelError, match="density has 3 values for 2 heads"):
        sharded_attend(policy, *own, shard, ranks, scale=0.3, context=Context())
    return ranks.sent


def test_a_wrong_number_of_densities_is_refused_before_anything_is_sent():
    assert run(2, refused_on_a_rank) == [0, 0]
