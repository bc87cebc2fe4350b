"""torch's flex_attention for the two measures that `attend` and the policies need, compiled once per shape class.

* `flex_blocks`: each block of queries against the blocks of keys that a table names (a BlockMask of whole blocks).
* `flex_mass`: every key with its log-mass, added to the logits by a score_mod.

Both return (out, lse). They are for CUDA: on the CPU compiled flex_attention returns no lse (torch 2.13), and is slower
than gathering the blocks (docs/kernels.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_LOG = logging.getLogger(__name__)
_AGREE = {torch.bfloat16: 0.05, torch.float16: 0.01}
"""How far a compiled kernel may be from the reference on its trial, absolute, for outputs of order 1; 1e-3 otherwise
(float32 products may run in TF32)."""


def flex_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    scale: float,
    *,
    query_block: int,
    key_block: int,
    kernel: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each block of queries against the key blocks that `kept` marks.

        out_i = sum_(j in kept blocks of i) exp(s q_i.k_j) v_j / sum_(same) exp(s q_i.k_j),   lse_i = log of the sum

    q (B, H, queries, D) and k, v (B, H, keys, D) of whole blocks; kept (B, H, queries/query_block, keys/key_block)
    bool, at least one in each row. out as q, lse (B, H, queries). `kernel` is what `flex_kernel` made; None runs
    torch's reference, which forms the whole matrix: for tests.
    """
    order, count = _listed(kept)
    return (_blocks if kernel is None else kernel)(q, k, v, kept, order, count, scale, query_block, key_block)


def flex_mass(
    q: Tensor, k: Tensor, v: Tensor, log_mass: Tensor, scale: float, *, kernel: Callable | None = None
) -> tuple[Tensor, Tensor]:
    """`attend` with log_mass (B, H, keys) added to the logits inside the kernel; `kernel` as in `flex_blocks`."""
    return (_mass if kernel is None else kernel)(q, k, v, log_mass, scale)


@lru_cache(maxsize=64)
def flex_kernel(
    device: str,
    dtype: torch.dtype,
    H: int,
    D: int,
    blocks: tuple[int, int] | None,
    backend: str | Callable = "inductor",
) -> Callable | None:
    """The compiled kernel of a shape class for `flex_blocks` (blocks: query and key block) or `flex_mass` (None).

    Sequence lengths are dynamic: one class serves every number of tokens. The kernel is tried once on a small case; if
    it does not compile or disagrees with the reference, the log says so and None comes back, which means: do without.
    `fullgraph` makes an error of what would be a silent fall-back to a dense matrix.
    """
    generator = torch.Generator().manual_seed(0)
    size, step = (2 * max(blocks), blocks) if blocks else (256, (1, 1))
    q, k, v = (torch.randn((1, H, size, D), generator=generator).to(device, dtype) for _ in range(3))
    if blocks:
        kept = torch.ones(1, H, size // step[0], size // step[1], dtype=torch.bool, device=device)
        kept[..., 0, -1] = False
        sizes = {"query_block": step[0], "key_block": step[1]}

        def run(kernel: Callable | None) -> tuple[Tensor, Tensor]:
            return flex_blocks(q, k, v, kept, D**-0.5, **sizes, kernel=kernel)
    else:
        mass = torch.randn((1, H, size), generator=generator).to(device)

        def run(kernel: Callable | None) -> tuple[Tensor, Tensor]:
            return flex_mass(q, k, v, mass, D**-0.5, kernel=kernel)

    try:
        kernel = torch.compile(_blocks if blocks else _mass, backend=backend, dynamic=True, fullgraph=True)
        distance = max((a.float() - b.float()).abs().max().item() for a, b in zip(run(kernel), run(None), strict=True))
        if not distance <= _AGREE.get(dtype, 1e-3):
            raise RuntimeError(f"it differs from the reference by {distance:g}")
    except Exception as error:  # any of a dozen classes: no g++, no Triton, a size that the code generator refuses
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"blocks {blocks}" if blocks else "log-mass"
        _LOG.warning(
            "flex_attention (%s, %s, head dim %d) is not usable on %s: %s; eager kernels do it, more slowly",
            what,
            dtype,
            D,
            device,
            reason,
        )
        return None
    return kernel


def _listed(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the key blocks of each row, the kept ones first, and how many these are, as BlockMask wants them."""
    order = torch.sort(kept.byte(), dim=-1, descending=True, stable=True).indices
    return order.int(), kept.sum(-1, dtype=torch.int32)


def _table(kept, order, count, query_block, key_block) -> BlockMask:
    def mask(b, h, i, j):  # the kernels skip it, since whole blocks are listed as full; the reference has only this
        return kept[b, h, i // query_block, j // key_block]

    none, nowhere = torch.zeros_like(count), torch.zeros_like(order)  # one tensor in two places confuses the CPU's code
    return BlockMask.from_kv_blocks(
        none,
        nowhere,
        count,
        order,
        BLOCK_SIZE=(query_block, key_block),
        mask_mod=mask,
        seq_lengths=(kept.shape[2] * query_block, kept.shape[3] * key_block),
        compute_q_blocks=False,
    )


def _blocks(q, k, v, kept, order, count, scale, query_block, key_block):
    table = _table(kept, order, count, query_block, key_block)
    # return_aux is its successor, but torch 2.6 has return_lse only
    return flex_attention(q, k, v, block_mask=table, scale=scale, return_lse=True)


def _mass(q, k, v, log_mass, scale):
    def add(score, b, h, i, j):
        return score + log_mass[b, h, j]

    return flex_attention(q, k, v, score_mod=add, scale=scale, return_lse=True)
