"""Policies that keep a subset of the keys, on 2 and 4 ranks: the outputs of one process, and only kept keys sent."""

from functools import cache

import pytest
import torch

from accel.distributed import Shard
from accel.policies import PhasedGrid, Subsample, TemporalStride
from tests import tolerances
from tests.accel.distributed.sharing import UNEVEN, in_one_process, shared_out
from tests.accel.policies.inputs import B, D, H

POLICIES = [policy for cls in (Subsample, TemporalStride, PhasedGrid) for policy in cls.examples()]
EXACT = [policy for policy in POLICIES if policy.kept_keys(UNEVEN) == UNEVEN.tokens]


@cache
def found(size, dtype):
    return dict(zip(POLICIES, shared_out(size, POLICIES, dtype), strict=True))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(map(str, p.to_dict().values())))
def test_equals_one_process(policy, dtype, size):
    out, _ = found(size, dtype)[policy]
    assert out.dtype == dtype
    torch.testing.assert_close(out, in_one_process(policy, dtype), rtol=0, atol=tolerances.ROUNDING[str(dtype)])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("policy", [p for p in POLICIES if p.fill in ("none", "mass")], ids=str)
def test_only_kept_keys_and_values_are_sent(policy, size):
    kept = policy.select(UNEVEN).kept
    if policy in EXACT:
        return
    for rank, sent in enumerate(found(size, torch.float32)[policy][1]):
        own = Shard(UNEVEN, rank, size).own
        own_kept = int(((own.start <= kept) & (kept < own.stop)).sum())
        assert sent == (size - 1) * 2 * own_kept * B * H * D * 4


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("fill, sums", [("published", 2), ("count", 2), ("mass", 0)])
def test_a_mean_key_is_a_sum_over_ranks(fill, sums, size):
    policies = [Subsample(stride=4, fill=fill), Subsample(stride=4)]
    (_, with_mean), (_, plain) = shared_out(size, policies, torch.float32)
    extra = 2 * (size - 1) / size * sums * B * H * D * 4
    assert [a - b for a, b in zip(with_mean, plain, strict=True)] == [extra] * size


def test_fitted_shrinkage_sends_few_queries():
    """Its probes, their outputs back, and two sums: far less than the keys."""
    fitted, fixed = (TemporalStride(3, fill="shrink", shrinkage=x) for x in (None, 0.5))
    (_, with_probes), (_, plain) = shared_out(2, [fitted, fixed], torch.float32)
    kept = fitted.kept_keys(UNEVEN)
    assert 0 < sum(with_probes) - sum(plain) <= kept / 16 * (2 * D + 1) * B * H * 4 + 2 * 2 * B * H * 4 + 2 * 8
