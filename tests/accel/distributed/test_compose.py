"""Two policies in one layer on 2 and 4 ranks."""

import pytest
import torch

from accel.distributed import Ranks, Shard, sharded_attend
from accel.errors import AccelError
from accel.policies import Compose, Context, Merge, QueryMerge, Subsample, TemporalStride
from tests import tolerances
from tests.accel.distributed.processes import run
from tests.accel.distributed.sharing import UNEVEN, in_one_process, shared_out
from tests.accel.policies.inputs import qkv

PER_HEAD = Subsample(stride=4, fill="shrink", shrinkage=(0.2, 0.9))
POLICIES = [
    *Compose.examples(),
    Compose((Merge(0.6), PER_HEAD)),
    Compose((QueryMerge(0.6), PER_HEAD)),
    Compose((QueryMerge(0.6), TemporalStride(2, fill="shrink"))),
    Compose((QueryMerge(1.0), TemporalStride(2))),
]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_one_process(dtype, size):
    for policy, (out, _) in zip(POLICIES, shared_out(size, POLICIES, dtype), strict=True):
        torch.testing.assert_close(out, in_one_process(policy, dtype), rtol=0, atol=tolerances.ROUNDING[str(dtype)])


@pytest.mark.parametrize("size", [2, 4])
def test_sends_what_the_merge_alone_sends(size):
    for first in (Merge(0.6), QueryMerge(0.6)):
        (_, both), (_, alone) = shared_out(size, [Compose((first, Subsample(stride=4))), first], torch.float32)
        assert both == alone


def refused_on_a_rank():
    ranks = Ranks()
    shard = Shard(UNEVEN, ranks.rank, ranks.size)
    own = [x[:, :, shard.own] for x in qkv(UNEVEN)]
    policy = Compose((Merge(0.6), Subsample(stride=4, fill="shrink", shrinkage=(0.2, 0.9, 0.5))))
    with pytest.raises(AccelError, match="shrinkage has 3 values for 2 heads"):
        sharded_attend(policy, *own, shard, ranks, scale=0.3, context=Context())
    return ranks.sent


def test_a_wrong_number_of_shrinkages_is_refused_before_anything_is_sent():
    assert run(2, refused_on_a_rank) == [0, 0]
