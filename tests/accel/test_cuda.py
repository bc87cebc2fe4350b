"""Every path of attend and every policy on a GPU against float64; skipped where there is none."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend, attend_naive
from accel.flex import flex_blocks, flex_kernel, flex_mass
from accel.layout import TokenLayout
from accel.policies import BlockSparse, registry
from tests import tolerances
from tests.accel.policies.inputs import LAYOUT, error, normal, qkv

if not torch.cuda.is_available():
    pytest.skip("no CUDA device is available", allow_module_level=True)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
POLICIES = [policy for cls in registry().values() for policy in cls.examples()]
SLACK = tolerances.ROUNDING["torch.float32"]


def tensors(dtype, queries=200, keys=333, D=64):
    return tuple(normal(s, 2, 4, n, D, dtype=dtype).cuda() for s, n in ((1, queries), (2, keys), (3, keys)))


@every_dtype
@pytest.mark.parametrize("shape", [None, (333,), (4, 1), (2, 4, 333)], ids=str)
@pytest.mark.parametrize("D", [32, 64, 96])
def test_attend(dtype, shape, D):
    q, k, v = tensors(dtype, D=D)
    log_mass = None if shape is None else 2 * normal(4, *shape).cuda()
    if shape is not None and shape[-1] > 1:
        log_mass[..., 5] = -torch.inf
    out, lse = attend(q, k, v, log_mass=log_mass)
    want, want_lse = attend_naive(q, k, v, log_mass=log_mass)
    plain = error(scaled_dot_product_attention(q, k, v), attend_naive(q, k, v)[0])
    assert out.dtype == dtype and error(out, want) <= tolerances.KERNEL_RATIO * plain + SLACK
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=tolerances.LSE_CUDA[str(dtype)])


@every_dtype
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(map(str, p.to_dict().values())))
def test_every_policy_agrees_with_the_cpu_in_float64(policy, dtype):
    low = qkv(dtype=dtype)
    wide = [x.double() for x in low]
    got = policy.attend(*(x.cuda() for x in low), LAYOUT).cpu()
    plain = error(scaled_dot_product_attention(*(x.cuda() for x in low)).cpu(), attend_naive(*wide)[0])
    assert error(got, policy.attend(*wide, LAYOUT)) <= tolerances.KERNEL_RATIO * plain + SLACK


@every_dtype
@pytest.mark.parametrize("fill", ["none", "mass"])
def test_block_sparse_in_blocks_that_flex_reads(dtype, fill):
    layout = TokenLayout(3, 5, 20, 21)
    policy = BlockSparse(density=0.4, fill=fill)
    low = [normal(s, 1, 2, layout.tokens, 64, dtype=dtype) for s in (1, 2, 3)]
    wide = [x.double() for x in low]
    got = policy.attend(*(x.cuda() for x in low), layout).cpu()
    plain = error(scaled_dot_product_attention(*(x.cuda() for x in low)).cpu(), attend_naive(*wide)[0])
    assert flex_kernel("cuda:0", dtype, 2, 64, (128, 64)) is not None
    assert error(got, policy.attend(*wide, layout)) <= tolerances.KERNEL_RATIO * plain + SLACK


@every_dtype
def test_flex_kernels(dtype):
    q, k, v = tensors(dtype, 512, 512)
    kept = normal(5, 2, 4, 4, 8).cuda() > 0
    kept[..., 0] = True
    kernel = flex_kernel("cuda:0", dtype, 4, 64, (128, 64))
    out, lse = flex_blocks(q, k, v, kept, 0.125, query_block=128, key_block=64, kernel=kernel)
    logits = (q.double() @ k.double().mT * 0.125).masked_fill(
        ~kept.repeat_interleave(128, 2).repeat_interleave(64, 3), -torch.inf
    )
    plain = error(scaled_dot_product_attention(q, k, v), attend_naive(q, k, v)[0])
    assert error(out, logits.softmax(-1) @ v.double()) <= tolerances.KERNEL_RATIO * plain + SLACK
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1), rtol=0, atol=tolerances.LSE_CUDA[str(dtype)])

    mass = 2 * normal(4, 2, 4, 512).cuda()
    out, lse = flex_mass(q, k, v, mass.float(), 0.125, kernel=flex_kernel("cuda:0", dtype, 4, 64, None))
    want, want_lse = attend_naive(q, k, v, log_mass=mass, scale=0.125)
    assert error(out, want) <= tolerances.KERNEL_RATIO * plain + SLACK
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=tolerances.LSE_CUDA[str(dtype)])
