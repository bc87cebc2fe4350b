"""Query merging on 2 and 4 ranks."""

import pytest
import torch

from accel.distributed import Shard
from accel.distributed.attention import head_shares
from accel.policies import QueryMerge
from tests import tolerances
from tests.accel.distributed.sharing import UNEVEN, in_one_process, shared_out
from tests.accel.policies.inputs import B, D, H, qkv

POLICIES = [*QueryMerge.examples(), QueryMerge(0.4, window=3)]  # the last one's windows are cut by the ranks


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equals_one_process(dtype, size):
    for policy, (out, _) in zip(POLICIES, shared_out(size, POLICIES, dtype), strict=True):
        assert out.dtype == dtype
        torch.testing.assert_close(out, in_one_process(policy, dtype), rtol=0, atol=tolerances.ROUNDING[str(dtype)])


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_sent_is_what_the_module_says(size):
    policy = QueryMerge.spark3r(200)
    ((_, sent),) = shared_out(size, [policy], torch.float32)
    row = policy.groups(qkv(dtype=torch.float32, layout=UNEVEN)[0], UNEVEN).row[:, 0]
    C, tokens = H * D, Shard(UNEVEN, 0, size).tokens
    T = [sum(len(one.unique()) for one in part) for part in row.split(tokens, 1)]  # of both elements of the batch
    for rank, got in enumerate(sent):
        share = len(head_shares(H, size)[rank]) / H
        destinations = int(policy.matching.destinations(UNEVEN)[Shard(UNEVEN, rank, size).own].sum())
        want = B * (size - 1) * 4 * (destinations * C + 2 * tokens[rank])
        want += 4 * C * ((1 - share) * (B * 2 * tokens[rank] + T[rank]) + share * (sum(T) - T[rank]))
        assert got == want
