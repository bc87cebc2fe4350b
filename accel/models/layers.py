"""Transformer layers of the patch embedding, the aggregator and the camera head, whole or in chunks of tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def in_chunks(
    fn: Callable, tensors: tuple[Tensor, ...], size: int | None, dim: int, out_dim: int | None = None
) -> Tensor | tuple[Tensor, ...]:
    """fn(*tensors) for an fn that treats the slices along `dim` independently, `size` of them at a time (None: all).

    The results, a tensor or a tuple of tensors, are joined along out_dim (dim if None). Without gradients they are
    written into one array as they come, so that beside inputs and outputs only one chunk's temporaries are alive.
    """
    length, out_dim = tensors[0].shape[dim], dim if out_dim is None else out_dim
    if size is None or length <= size:
        return fn(*tensors)
    parts = (fn(*(x.narrow(dim, i, min(size, length - i)) for x in tensors)) for i in range(0, length, size))
    if torch.is_grad_enabled():
        found = [part if isinstance(part, tuple) else (part,) for part in parts]
        joined = tuple(torch.cat(column, out_dim) for column in zip(*found, strict=True))
    else:
        joined, start = (), 0
        for part in parts:
            part = part if isinstance(part, tuple) else (part,)
            joined = joined or tuple(_whole(x, out_dim, length) for x in part)
            rows = part[0].shape[out_dim]
            for whole, x in zip(joined, part, strict=True):
                whole.narrow(out_dim, start, rows).copy_(x)
            start += rows
            del part, x
    return joined if len(joined) > 1 else joined[0]


def _whole(part: Tensor, dim: int, length: int) -> Tensor:
    shape = list(part.shape)
    shape[dim] = length
    return part.new_empty(shape)


def rope_table(
    grid_h: int, grid_w: int, special: int, head_dim: int, base: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2-D rotary embedding of one frame, each (P, head_dim).

    The first half of the channels rotates with the row, the second with the column; patches count from 1, special
    tokens sit at 0 and are not rotated. Source: RoPE (2104.09864) in the axial form of VGGT.
    """
    half = head_dim // 2
    frequency = base ** -(torch.arange(0, half, 2, device=like.device, dtype=torch.float32) / half)
    rows = torch.arange(1, grid_h + 1, device=like.device, dtype=torch.float32).repeat_interleave(grid_w)
    cols = torch.arange(1, grid_w + 1, device=like.device, dtype=torch.float32).repeat(grid_h)
    angles = torch.cat([(p[:, None] * frequency).repeat(1, 2) for p in (rows, cols)], dim=1)
    angles = F.pad(angles, (0, 0, special, 0))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply `rope_table` to x (B, H, S*P, D); the table of one frame repeats over frames without being copied."""
    cos, sin = table
    frames = x.unflatten(2, (-1, cos.shape[0]))
    a, b, c, d = frames.chunk(4, dim=-1)
    rotated = frames * cos + torch.cat([-b, a, -d, c], dim=-1) * sin
    return rotated.flatten(2, 3)


class Attention(nn.Module):
    """Multi-head attention, optionally with LayerNorm on queries and keys and with RoPE."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, n, C) -> q, k, v (B, H, n, D), normalised and rotated."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope).to(v.dtype), rotate(k, rope).to(v.dtype)
        return q, k, v

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None, chunk: int | None = None) -> Tensor:
        """Attention among the n tokens of x (B, n, C); the projections take `chunk` of them at a time."""
        q, k, v = in_chunks(lambda part: self.heads(part, rope), (x,), chunk, dim=1, out_dim=2)
        del x
        out = F.scaled_dot_product_attention(q, k, v)
        del q, k, v
        return in_chunks(lambda part: self.proj(part.transpose(1, 2).flatten(2)), (out,), chunk, dim=2, out_dim=1)


class LayerScale(nn.Module):
    """Per-channel gain of a residual branch (CaiT, 2103.17239)."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-LN transformer block: x + ls1 attn(norm1 x), then x + ls2 mlp(norm2 x)."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float, qk_norm: bool = False, eps: float = 1e-5
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        chunk: int | None = None,
        *,
        apart: bool = False,
    ) -> Tensor:
        """x (B, n, C) -> (B, n, C), about `chunk` tokens at a time (None: all), a multiple of the rope's tokens.

        apart: sequences may go one after another, as frames do. Otherwise the attention is one call for all of them,
        and everything else goes in chunks along n.
        """
        B, n = x.shape[:2]
        if chunk is None or B * n <= chunk:
            return self.whole(x, rope)
        if apart:
            return in_chunks(lambda part: self.whole(part, rope), (x,), max(1, chunk // n), dim=0)
        attended = self.attn(in_chunks(self.norm1, (x,), chunk, dim=1), rope, chunk)
        return in_chunks(self.after_attention, (x, attended), chunk, dim=1)

    def whole(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return self.after_attention(x, self.attn(self.norm1(x), rope))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.ls1(attended)
        return x + self.ls2(self.mlp(self.norm2(x)))
