"""flex_attention's two wrappers against float64 twins, how often they compile, and what happens if they cannot."""

import logging
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from accel.attend import attend_naive
from accel.flex import _listed, _table, flex_blocks, flex_kernel, flex_mass
from tests import tolerances
from tests.accel.policies.inputs import normal

H, D, QUERY, KEY = 2, 16, 16, 8
ATOL = tolerances.ROUNDING["torch.float32"]
KINDS = [(QUERY, KEY), None]
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:return_lse is deprecated"),
]


def tensors(tokens, batch=1):
    return [normal(seed, batch, H, tokens, D, dtype=torch.float32) for seed in (1, 2, 3)]


def kept_blocks(tokens, batch=1):
    kept = normal(4, batch, H, tokens // QUERY, tokens // KEY) > 0.5
    kept[..., 1] = True
    return kept


def run_and_compare(tokens, blocks, kernel=None, batch=1):
    """Largest difference of out or lse from the twin."""
    q, k, v = tensors(tokens, batch)
    if blocks:
        kept = kept_blocks(tokens, batch)
        got = flex_blocks(q, k, v, kept, 0.3, query_block=QUERY, key_block=KEY, kernel=kernel)
        logits = (q.double() @ k.double().mT * 0.3).masked_fill(
            ~kept.repeat_interleave(QUERY, 2).repeat_interleave(KEY, 3), -math.inf
        )
        want = logits.softmax(-1) @ v.double(), logits.logsumexp(-1)
    else:
        mass = normal(5, batch, H, tokens)
        got = flex_mass(q, k, v, mass.float(), 0.3, kernel=kernel)
        want = attend_naive(q, k, v, log_mass=mass, scale=0.3)
    return max((a - b).abs().max().item() for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("blocks", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_reference_agrees_with_its_float64_twin(blocks, batch):
    assert run_and_compare(64, blocks, batch=batch) <= ATOL


def test_the_table_that_kernels_read():
    """The reference looks at the mask alone, the kernels at the lists alone: they say the same."""
    kept = kept_blocks(64, 2)
    table = _table(kept, *_listed(kept), QUERY, KEY)
    assert torch.equal(table.to_dense().bool(), kept)
    assert table.kv_num_blocks.sum() == 0  # whole blocks only: no mask inside


@pytest.mark.parametrize("blocks", KINDS)
def test_one_compilation_serves_every_number_of_tokens(blocks):
    """Traced without generating code, so that it runs where no compiler is; a second trace generalises the lengths."""
    counter = CompileCounter()
    kernel = flex_kernel("cpu", torch.float32, H, D, blocks, backend=counter)
    assert run_and_compare(64, blocks, kernel) <= ATOL
    traced = counter.frame_count
    for tokens in (128, 192, 64):
        assert run_and_compare(tokens, blocks, kernel) <= ATOL
    assert counter.frame_count == traced <= 2
    assert flex_kernel("cpu", torch.float32, H, D, blocks, backend=counter) is kernel


@pytest.mark.parametrize("blocks", KINDS)
def test_no_compiler_is_said_once_and_clearly(blocks, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no working C++ compiler")

    with caplog.at_level(logging.WARNING, "accel.flex"):
        for _ in range(3):
            assert flex_kernel("cpu", torch.float32, H, D, blocks, backend=broken) is None
    said = [record.getMessage() for record in caplog.records if record.name == "accel.flex"]
    assert len(said) == 1 and "no working C++ compiler" in said[0] and "eager kernels" in said[0]


def test_a_kernel_that_computes_something_else_is_not_used(caplog):
    def wrong(graph, inputs):
        return lambda *args: tuple(2 * x for x in graph(*args))

    assert flex_kernel("cpu", torch.float32, H, D, (QUERY, KEY), backend=wrong) is None
    assert "differs from the reference" in caplog.text
