"""Small stand-ins: a model with the seam of VGGT, a schedule, and query/key clouds of known kinds."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.layout import TokenLayout


class Attention(nn.Module):
    """One multi-head attention that calls F.scaled_dot_product_attention, as VGGT's does."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.options: dict = {}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attn = Attention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(F.layer_norm(x, x.shape[-1:]))


class TwoFold(nn.Module):
    """Frame and global blocks in turn on one linear token per 4x4 patch, with a special token per frame."""

    def __init__(self, generator: torch.Generator, dim: int = 32, heads: int = 2, depth: int = 3):
        super().__init__()
        self.embed = nn.Linear(48, dim)
        self.aggregator = nn.Module()
        self.aggregator.frame_blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.aggregator.global_blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.1))
        self.eval()

    def layout(self, images: Tensor) -> TokenLayout:
        frames, _, height, width = images.shape[-4:]
        return TokenLayout(frames, 1, height // 4, width // 4)

    def forward(self, images: Tensor) -> Tensor:
        B, S = images.shape[:2]
        patches = F.unfold(images.flatten(0, 1), 4, stride=4).mT
        x = self.embed(F.pad(patches, (0, 0, 1, 0)))
        P = x.shape[1]
        for frame, glob in zip(self.aggregator.frame_blocks, self.aggregator.global_blocks, strict=True):
            x = frame(x.reshape(B * S, P, -1))
            x = glob(x.reshape(B, S * P, -1))
        return x


@dataclass
class Plan:
    """The least that `patch` accepts as a schedule."""

    layout: TokenLayout
    policies: tuple


def cloud(kind: str, tokens: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """q, k (1, tokens, dim), rms 1 per channel before the temperature, of one of four kinds.

    "sphere": independent directions, moderate temperature; "sharp": the same, hotter logits; "collapsed": all tokens
    near one direction; "scene": self-attention of tokens on a 3-dimensional latent.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def sphere(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * dim**0.5

    if kind == "sphere":
        q, k = sphere(normal(tokens, dim)), sphere(normal(tokens, dim))
    elif kind == "sharp":
        q, k = 1.7 * sphere(normal(tokens, dim)), sphere(normal(tokens, dim))
    elif kind == "collapsed":
        q = k = sphere(1 + 0.25 * normal(tokens, dim))
    elif kind == "scene":
        k = sphere(normal(tokens, 3) @ normal(3, dim) / 3**0.5 + 0.3 * normal(tokens, dim))
        q = 1.2 * k
    else:
        raise ValueError(kind)
    return q[None].float(), k[None].float()
