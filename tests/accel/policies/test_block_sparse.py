"""What is peculiar to `BlockSparse` and its map; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from accel.attend import attend_naive
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import BlockSparse, base
from accel.policies.block_map import block_scores, pool, select_blocks
from tests import tolerances
from tests.accel.policies.inputs import LAYOUT, B, D, H, error, normal, qkv

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SMALL = {"query_block": 8, "key_block": 4}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return out


def test_published_setting():
    assert BlockSparse.faster_vggt() == BlockSparse(
        density=0.25, threshold=None, query_block=128, key_block=64, fill="none", order="raster"
    )
    policy = BlockSparse.faster_vggt(0.75, 0.97)
    assert (policy.floor, policy.threshold, policy.density) == (0.25, 0.97, 1.0)
    layout = TokenLayout(20, 5, 28, 37)
    assert BlockSparse.faster_vggt().kept_blocks(layout) == (20 * 28 * 37 // 64 // 4,)


def test_second_order_of_a_blocks_mass():
    """The remainder of the score falls as the third power of the spread of the keys."""
    q, centre, offset = normal(1, 1, 1, 1, D), normal(2, 1, 1, 9, 1, D), normal(3, 1, 1, 9, 6, 1)
    remainders = []
    for spread in (0.2, 0.1):
        k = centre + spread * offset * torch.nn.functional.one_hot(torch.arange(9) % D, D)[:, None]  # one channel each
        exact = attend_naive(q.expand(1, 9, 1, D), k[0], k[0], scale=0.5)[1] - torch.tensor(6.0).log()
        scores, second = block_scores(q, pool(k, variance=True), 0.5)
        first = block_scores(q, pool(k), 0.5)[0]
        torch.testing.assert_close(first + second, scores, rtol=0, atol=tolerances.ROUNDING["torch.float64"])
        remainders.append((exact[0, :, 0] - scores[0, 0, 0]).abs().max().item())
    assert remainders[1] < remainders[0] / 2**3 * (1 + tolerances.BLOCK_ORDER)


def test_selection_by_hand():
    shares = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05]).log().expand(1, 2, 1, 5)
    order, count = select_blocks(shares, torch.tensor([4, 2]))
    assert order[0, 0, 0, :3].tolist() == [1, 3, 0] and count.flatten().tolist() == [4, 2]
    for threshold, least, want in ((0.8, 1, 2), (0.79, 1, 1), (0.1, 1, 1), (0.1, 3, 3), (1.0, 1, 4)):
        assert select_blocks(shares, torch.tensor([4, 4]), threshold=threshold, least=least)[1].unique() == want


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fill", ["mass", "cumulant"])
def test_stand_ins_are_exact_for_blocks_of_equal_tokens(dtype, fill):
    policy = BlockSparse(density=0.4, fill=fill, **SMALL)
    q, k, v = qkv(dtype=dtype)
    patches = policy.patch_order(LAYOUT)
    for x in (k, v):
        x[:, :, patches] = x[:, :, patches[::4].repeat_interleave(4)]
    want = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT), want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


def test_it_finds_the_blocks_that_matter():
    """Queries aligned with their own block of keys: the kept blocks carry the output; random ones would not."""
    policy = BlockSparse(density=0.25, fill="none", query_block=4, key_block=4)
    patches = policy.patch_order(LAYOUT)
    q, k, v = qkv()
    topic = normal(7, B, H, 20, D).repeat_interleave(4, 2)
    q[:, :, patches] = 3 * topic
    k[:, :, patches] = topic + 0.1 * k[:, :, patches]
    assert error(policy.attend(q, k, v, LAYOUT), scaled_dot_product_attention(q, k, v)) < tolerances.BLOCKS_FOUND


def test_memory_of_the_map_is_bounded(monkeypatch):
    """Blocks of two tokens: the whole map has 600^2 scores, more than any tensor here may have."""
    layout = TokenLayout(2, 1, 30, 20)
    policy = BlockSparse(density=0.01, query_block=2, key_block=2, order="raster", fill="none")
    monkeypatch.setattr(base, "BLOCK_ELEMENTS", 2**13)
    q, k, v = (normal(s, 1, 1, layout.tokens, 4, dtype=torch.float32) for s in (1, 2, 3))
    with Largest() as largest:
        policy.attend(q, k, v, layout)
    assert largest.elements <= max(2**13, 2 * q.numel()) < 600**2 / 16


@pytest.mark.parametrize("policy", BlockSparse.examples(), ids=lambda p: f"{p.density}-{p.fill}")
def test_blocks_of_queries_change_nothing(policy, monkeypatch):
    q, k, v = qkv()
    want = policy.attend(q, k, v, LAYOUT)
    monkeypatch.setattr(base, "BLOCK_ELEMENTS", 1000)
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT), want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])


def test_density_counts_what_a_query_pays_for():
    layout = TokenLayout(16, 0, 32, 32)
    for density in (0.125, 0.25, 0.5):
        for fill in ("none", "mass"):
            policy = BlockSparse(density=density, fill=fill)
            paid = policy.keys_per_query(layout) / layout.tokens
            assert density - 1 / 256 <= paid <= density


def test_gradients_pass_the_choice_by():
    policy = BlockSparse(density=0.5, fill="cumulant", query_block=4, key_block=2)
    layout = TokenLayout(2, 1, 2, 2)
    tensors = [normal(s, 1, 1, layout.tokens, 2).requires_grad_() for s in (1, 2, 3)]
    assert torch.autograd.gradcheck(lambda *x: policy.attend(*x, layout), tensors, fast_mode=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0}, "density=0"),
        ({"density": (0.5, 1.5)}, "one per head"),
        ({"density": ()}, "one per head"),
        ({"density": True}, "density=True"),
        ({"threshold": 1.2}, "threshold=1.2"),
        ({"floor": 0.5, "threshold": 0.9}, "floor=0.5 must be between"),
        ({"floor": 0.1}, "no meaning without a threshold"),
        ({"query_block": 1}, "query_block=1"),
        ({"key_block": 6.5}, "key_block=6.5"),
        ({"fill": "mean"}, "fill='mean'"),
        ({"order": "morton"}, "order='morton'"),
    ],
)
def test_refuses_fields(fields, message):
    with pytest.raises(AccelError, match=message):
        BlockSparse(**fields)


def test_refuses_what_it_cannot_serve():
    with pytest.raises(AccelError, match="no full block"):
        BlockSparse(key_block=64).check(TokenLayout(3, 2, 4, 5))
    with pytest.raises(AccelError, match="3 values for 2 heads"):
        BlockSparse(density=(0.5, 0.5, 0.5), **SMALL).attend(*qkv(), LAYOUT)
    with pytest.raises(AccelError, match="sparse_ratio=1"):
        BlockSparse.faster_vggt(1)
