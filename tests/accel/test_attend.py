"""attend against its float64 twin, and the identities that acceleration and measurement rest on."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import _mass_channels, attend, attend_naive, combine
from accel.errors import AccelError
from tests import tolerances

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(dtype=torch.float64, B=2, H=3, Nq=37, Nk=53, D=16, Dv=16):
    return (
        normal(1, B, H, Nq, D, dtype=dtype),
        normal(2, B, H, Nk, D, dtype=dtype),
        normal(3, B, H, Nk, Dv, dtype=dtype),
    )


def close(got, want, dtype):
    """Two results of attend for inputs of this dtype agree up to rounding."""
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=tolerances.ROUNDING[str(dtype)])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=tolerances.LSE[str(dtype)])


def error(got, want):
    return ((got.double() - want).square().mean() / want.square().mean()).sqrt().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [None, (), (53,), (3, 53), (3, 1), (2, 1, 53), (1, 3, 53), (2, 3, 53)])
@pytest.mark.parametrize("Dv", [16, 5, 24])
def test_agrees_with_the_float64_twin(dtype, shape, Dv):
    q, k, v = qkv(dtype, Dv=Dv)
    log_mass = None if shape is None else 2 * normal(4, *shape)
    out, lse = attend(q, k, v, log_mass=log_mass, scale=0.3)
    want, want_lse = attend_naive(q, k, v, log_mass=log_mass, scale=0.3)
    plain = error(scaled_dot_product_attention(q, k, v, scale=0.3), attend_naive(q, k, v, scale=0.3)[0])
    assert out.dtype == dtype and out.shape == want.shape and lse.shape == want_lse.shape
    assert error(out, want) <= tolerances.KERNEL_RATIO * plain + tolerances.ROUNDING[str(torch.float64)]
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=tolerances.LSE[str(dtype)])


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_blockwise_path_agrees(chunk):
    q, k, v = qkv(Dv=7)
    log_mass = normal(4, 2, 3, 53)
    for got, want in zip(
        attend(q, k, v, log_mass=log_mass, chunk=chunk), attend_naive(q, k, v, log_mass=log_mass), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING[str(torch.float64)])


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity_removes_the_key(dtype, chunk):
    q, k, v = qkv(dtype, Nk=1100)  # whole blocks of the fused kernel are removed
    keep = torch.arange(1100) % 7 == 3
    keep[:600] = False
    log_mass = torch.zeros(1100).masked_fill(~keep, -torch.inf)
    v = v.masked_fill(~keep[:, None], 1e3)
    got = attend(q, k, v, log_mass=log_mass, chunk=chunk)
    want = attend(q, k[:, :, keep], v[:, :, keep], chunk=chunk)
    close(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicated_keys_equal_their_mass(dtype):
    q, k, v = qkv(dtype)
    times = torch.arange(53) % 4 + 1
    copies = torch.arange(53).repeat_interleave(times)
    got = attend(q, k, v, log_mass=times.double().log())
    want = attend(q, k[:, :, copies], v[:, :, copies])
    close(got, want, dtype)


def test_union_of_disjoint_measures():
    q, k, v = qkv()
    log_mass = normal(4, 53)
    parts = [attend(q, k[:, :, s], v[:, :, s], log_mass=log_mass[s]) for s in (slice(0, 20), slice(20, 53))]
    for got, want in zip(combine(*parts[0], *parts[1]), attend(q, k, v, log_mass=log_mass), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING[str(torch.float64)])
    empty = torch.full_like(parts[0][1], -torch.inf)
    for got, want in zip(combine(*parts[0], 0 * parts[1][0], empty), parts[0], strict=True):
        assert torch.equal(got, want)


def test_transposed_matrix_without_forming_it():
    q, k, _ = qkv()
    Y = normal(5, 2, 3, 37, 4)
    lse = attend(q, k, k)[1]
    out, column = attend(k, q, Y, log_mass=-lse)
    A = (q @ k.transpose(-1, -2) * 16**-0.5).softmax(-1)
    got = column.exp().unsqueeze(-1) * out
    torch.testing.assert_close(got, A.transpose(-1, -2) @ Y, rtol=0, atol=tolerances.ROUNDING[str(torch.float64)])


def test_strided_inputs():
    q, k, v = qkv()
    want = attend(q, k, v)[0]
    for a, b in [(1, 2), (2, 3)]:
        strided = [t.transpose(a, b).contiguous().transpose(a, b) for t in (q, k, v)]
        torch.testing.assert_close(attend(*strided)[0], want, rtol=0, atol=tolerances.ROUNDING[str(torch.float64)])


def test_gradients_through_both_outputs():
    q, k, v = (t.requires_grad_() for t in qkv(B=1, H=2, Nq=5, Nk=4, D=3, Dv=2))
    log_mass = normal(4, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, v, m: attend(q, k, v, log_mass=m, chunk=2), (q, k, v, log_mass))


def test_memory_is_bounded():
    q, k, v = (t.requires_grad_() for t in qkv(torch.float32, 1, 1, 2000, 2000, 8, 8))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attend(q, k, v, chunk=100)
    assert max(sizes, default=0) < 2000 * 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mass_channels_of_the_cuda_path(dtype):
    q, k, v = qkv(dtype)
    log_mass = (3 * normal(4, 1, 3, 53)).float()
    log_mass[..., 5] = -torch.inf
    got = attend_naive(*_mass_channels(q, k, log_mass, 0.25), v, scale=0.25)
    for a, b in zip(got, attend_naive(q, k, v, log_mass=log_mass, scale=0.25), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerances.ROUNDING[str(torch.float32)])


def test_blockwise_path_keeps_its_precision_under_autocast():
    q, k, v = qkv(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(q, k, v, chunk=16)
    close(got, attend(q, k, v), torch.float32)


def test_mass_of_the_largest_and_smallest_float16_logits():
    """log_mass in extra channels where log_mass/scale leaves float16's range: what stays in is exact."""
    q, k, v = qkv(torch.float16)
    log_mass = torch.zeros(1, 1, 53)
    log_mass[..., :5] = -torch.inf
    log_mass[..., 5:9] = -30
    got = attend_naive(*_mass_channels(q, k, log_mass, 0.01), v, scale=0.01)
    for a, b in zip(got, attend_naive(q, k, v, log_mass=log_mass, scale=0.01), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerances.ROUNDING["torch.float32"])


def test_no_queries():
    q, k, v = qkv(Nq=0)
    out, lse = attend(q, k, v)
    assert out.shape == (2, 3, 0, 16) and lse.shape == (2, 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 37, 8, dtype=torch.float64)}, "head dim"),
        ({"k": torch.zeros(2, 3, 52, 16, dtype=torch.float64)}, r"got q \(2, 3, 37, 16\)"),
        ({"q": torch.zeros(37, 16)}, "needs q"),
        ({"v": torch.zeros(2, 3, 53, 16)}, "one floating dtype"),
        ({"log_mass": torch.zeros(52)}, r"log_mass \(52,\) does not broadcast"),
        ({"log_mass": torch.zeros(1, 2, 3, 53)}, "does not broadcast"),
        ({"log_mass": torch.full((2, 1, 53), -torch.inf)}, "no key is left"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_errors_name_the_value(change, message):
    arguments = dict(zip("qkv", qkv(), strict=True)) | change
    with pytest.raises(AccelError, match=message):
        attend(**arguments)


def test_no_keys():
    q, k, v = qkv(Nk=0)
    with pytest.raises(AccelError, match="at least one key"):
        attend(q, k, v)
