"""Softmax attention as an average against a weighted measure of keys: the one primitive of `accel`.

    out_i = sum_j m_j exp(s q_i.k_j) v_j / sum_j m_j exp(s q_i.k_j),    lse_i = log of the denominator (natural log)

with s = `scale` and m = exp(`log_mass`). The N x N matrix is never formed. What computes it:

* CPU: torch's own fused kernel, which returns lse and takes a mask that is broadcast over the queries.
* CUDA, bfloat16 and float16: the flash kernel; log_mass rides on extra key channels (see `_flash_cuda`).
* CUDA, float32: the memory-efficient kernel with log_mass as a bias.
* everything else (gradients, other devices, `chunk` given): exact softmax over blocks of queries.

The two CUDA paths follow the operators' documented constraints and have not been run: no GPU was at hand.
tests/accel/test_cuda.py compares them with `attend_naive` where there is one. docs/kernels.md has the measurements
behind these choices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from accel.errors import AccelError

_BLOCK_ELEMENTS = 2**24
"""Logits held at once by the block-wise path: 64 MiB in float32."""
_REMOVED = -1e4
"""Stands for log 0 where a kernel would turn -inf into NaN; exp of it is 0 in every dtype used there."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_mass: Tensor | None = None,
    scale: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of q against the measure sum_j m_j delta_(k_j, v_j), and the log of its normaliser.

    q (B, H, Nq, D), k (B, H, Nk, D), v (B, H, Nk, Dv), one floating dtype and device; log_mass broadcasts to
    (B, H, Nk), -inf removes a key; scale defaults to D**-0.5; chunk, if given, selects the block-wise path with so
    many queries per block. Returns out (B, H, Nq, Dv) in q's dtype and lse (B, H, Nq) in float32 (float64 for float64).

    Exact up to rounding. Differentiable in q, k, v and log_mass, through out and lse, at one block of logits of
    memory (the blocks are recomputed in the backward pass).
    """
    mass = _check(q, k, v, log_mass, chunk)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tensors = (q, k, v) if mass is None else (q, k, v, mass)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if q.numel() and chunk is None and not needs_grad:  # torch's CPU kernel crashes the process on an empty q or k
        width = max(q.shape[-1], v.shape[-1])
        q_, k_, v_ = (_widen(t, width) for t in (q, k, v))
        path = None
        if q.device.type == "cpu":
            path = _flash_cpu
        elif q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and width <= 248:
            path = _flash_cuda
        elif q.device.type == "cuda" and q.dtype == torch.float32:
            path = _efficient_cuda
        if path is not None:
            out, lse = path(q_, k_, v_, mass, scale)
            return out[..., : v.shape[-1]], lse
    with without_autocast(q):
        return _blockwise(q, k, v, mass, scale, chunk)


def attend_naive(q: Tensor, k: Tensor, v: Tensor, *, log_mass: Tensor | None = None, scale: float | None = None):
    """Float64 twin of `attend` that forms the whole matrix: for tests and small N."""
    q, k, v = (t.double() for t in (q, k, v))
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if log_mass is not None:
        logits = logits + log_mass.double().expand(*k.shape[:-1]).unsqueeze(-2)
    lse = logits.logsumexp(-1)
    return (logits - lse.unsqueeze(-1)).exp() @ v, lse


def combine(out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Attention against the union of two disjoint measures, from the attention against each (exact).

        lse = log(exp lse1 + exp lse2),    out = (exp(lse1 - lse) out1 + exp(lse2 - lse) out2)

    out (..., Nq, Dv) and lse (..., Nq) of each. An lse of -inf is the empty measure (its out must be finite); both
    empty gives NaN. Arithmetic in lse's dtype, out in out1's dtype.
    """
    weight = torch.sigmoid(lse2 - lse1).unsqueeze(-1)
    return (out1 + weight * (out2 - out1)).to(out1.dtype), torch.logaddexp(lse1, lse2)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which matrix products on x's device keep their dtype."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _check(q: Tensor, k: Tensor, v: Tensor, log_mass: Tensor | None, chunk: int | None) -> Tensor | None:
    """Validate the arguments; log_mass as (B or 1, H or 1, Nk) in float32 (float64 for float64)."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[:2] == k.shape[:2] and k.shape[:3] == v.shape[:3]):
        raise AccelError(f"attend needs q (B, H, Nq, D), k (B, H, Nk, D), v (B, H, Nk, Dv), got {shapes}")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise AccelError(f"attend needs q and k of one head dim, at least 1, got {shapes}")
    if k.shape[2] == 0:
        raise AccelError(f"attend needs at least one key, got {shapes}")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise AccelError(f"attend needs one floating dtype, got q {q.dtype}, k {k.dtype}, v {v.dtype}; convert first")
    if chunk is not None and chunk < 1:
        raise AccelError(f"chunk={chunk} must be at least 1, or None")
    if log_mass is None:
        return None
    full = k.shape[:3]
    mass = log_mass.to(device=q.device, dtype=_accumulator(q.dtype))
    if mass.ndim > 3 or any(n not in (1, want) for n, want in zip(mass.shape[::-1], full[::-1], strict=False)):
        raise AccelError(f"log_mass {tuple(log_mass.shape)} does not broadcast to (B, H, Nk) = {tuple(full)}")
    mass = mass.reshape((1,) * (3 - mass.ndim) + mass.shape)
    if mass.shape[-1] != full[-1]:
        mass = mass.expand(-1, -1, full[-1])
    if bool(torch.isneginf(mass).all(-1).any()):
        raise AccelError("log_mass is -inf for every key of some head: no key is left; keep at least one")
    return mass


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _widen(x: Tensor, width: int) -> Tensor:
    """Zero channels up to `width`, last dimension contiguous (the fused kernels read past a strided one)."""
    x = pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    mask = None if mass is None else mass.unsqueeze(2)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    return out, lse


def _flash_cuda(q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Flash kernel; it takes no bias, so extra channels carry log_mass. Not run yet: see the module's docstring."""
    D = q.shape[-1]
    if mass is not None:
        q, k = _mass_channels(q, k, mass, scale)
    width = -(-q.shape[-1] // 8) * 8  # the kernel wants a multiple of 8
    q, k, v = (_widen(t, width) for t in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    return out[..., :D], lse[..., : q.shape[2]]


def _mass_channels(q: Tensor, k: Tensor, mass: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q and k with three more channels, so that scale q.k gains log_mass: ones in q, log_mass/scale split up in k.

    The parts are successive roundings to the dtype, so together they have three times its mantissa (24 bits in
    bfloat16, where one part alone would err by 1e-2); they share a block of 8 channels, so the third is free.
    """
    low = mass.clamp_min(mass.amax(-1, keepdim=True) + _REMOVED) / scale
    if k.dtype == torch.float16:
        low = low.clamp(-6e4, 6e4)  # its largest value is 65504
    rest, parts = low.expand(k.shape[:3]), []
    for _ in range(3):
        parts.append(rest.to(k.dtype))
        rest = rest - parts[-1].to(rest.dtype)
    return torch.cat([q, q.new_ones((*q.shape[:3], 3))], -1), torch.cat([k, torch.stack(parts, -1)], -1)


def _efficient_cuda(q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Memory-efficient kernel; the bias is stored once per (batch, head), padded to the alignment it asks for.

    Not run yet: see the module's docstring.
    """
    D = q.shape[-1]
    q, k, v = (_widen(t, -(-D // 8) * 8) for t in (q, k, v))
    bias = None
    if mass is not None:
        keys = k.shape[2]
        mass = mass.expand(k.shape[:3])
        mass = mass.clamp_min(mass.amax(-1, keepdim=True) + _REMOVED)
        bias = pad(mass, (0, -keys % 16)).unsqueeze(2)[..., :keys].expand(-1, -1, q.shape[2], -1)
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)[:2]
    return out[..., :D], lse[..., : q.shape[2]]


def _blockwise(
    q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, scale: float, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Exact softmax over blocks of queries; with gradients, each block is recomputed in the backward pass."""
    if chunk is None:
        chunk = max(1, _BLOCK_ELEMENTS // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    pieces = []
    for block in q.split(chunk, 2) if q.shape[2] else [q]:
        if torch.is_grad_enabled():
            piece = checkpoint(_block, block, k, v, mass, scale, use_reentrant=False, preserve_rng_state=False)
        else:
            piece = _block(block, k, v, mass, scale)
        pieces.append(piece)
    return torch.cat([out for out, _ in pieces], 2), torch.cat([lse for _, lse in pieces], 2)


def _block(q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    dtype = _accumulator(q.dtype)
    logits = (q.to(dtype) * scale) @ k.to(dtype).transpose(-1, -2)
    if mass is not None:
        logits = logits + mass.unsqueeze(2)
    lse = logits.logsumexp(-1)
    return ((logits - lse.unsqueeze(-1)).exp() @ v.to(dtype)).to(q.dtype), lse
