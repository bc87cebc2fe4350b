"""Small stand-ins: models with the seams of the public ones, a schedule, and query/key clouds of known kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

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
        self.aggregator.patch_start_idx, self.aggregator.patch_size = 1, 4
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


# --- the seams of the public models, in small: attribute names and call patterns are theirs, the code is not ---


class NormedAttention(nn.Module):
    """Attention with LayerNorm on q and k; `kernels(q)` names the SDPA kernels it allows, None for all.

    With kernels it calls the function under a name imported before any patch, as Pi3 does.
    """

    def __init__(self, dim: int, heads: int, kernels: Callable | None = None):
        super().__init__()
        self.heads, self.kernels, self.fused_attn = heads, kernels, True
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)

    def forward(self, x: Tensor, pos=None, xpos=None, rope=None) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if not self.fused_attn:
            out = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        elif self.kernels is None:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        else:
            with sdpa_kernel(self.kernels(q)):
                out = scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


class ScaledBlock(nn.Module):
    """Pre-norm block with a small gain on each residual; `keyword` is how it passes positions to its attention."""

    def __init__(self, dim: int, heads: int, keyword: str, kernels: Callable | None = None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = NormedAttention(dim, heads, kernels), nn.Linear(dim, dim)
        self.keyword = keyword

    def forward(self, x: Tensor, pos=None, xpos=None) -> Tensor:
        x = x + 0.5 * self.attn(self.norm1(x), **{self.keyword: pos})
        return x + 0.5 * F.gelu(self.mlp(self.norm2(x)))


def _patches(images: Tensor, size: int) -> Tensor:
    return F.unfold(images.flatten(0, 1), size, stride=size).mT


def _random(model: nn.Module, generator: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return model.eval()


class OfficialAggregator(nn.Module):
    """Frame and global blocks in turn; keeps the join of every pair of outputs in a list."""

    def __init__(self, dim: int, heads: int, depth: int):
        super().__init__()
        self.patch_size, self.patch_start_idx, self.aa_order = 4, 3, ["frame", "global"]
        self.patch_embed = nn.Linear(3 * 4 * 4, dim)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, 2, dim))
        self.frame_blocks = nn.ModuleList(ScaledBlock(dim, heads, "pos") for _ in range(depth))
        self.global_blocks = nn.ModuleList(ScaledBlock(dim, heads, "pos") for _ in range(depth))

    def forward(self, images: Tensor) -> tuple[list[Tensor], int]:
        B, S = images.shape[:2]
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, S - 1, -1, -1)], dim=1)
        x = torch.cat([special.expand(B, -1, -1, -1).flatten(0, 1), self.patch_embed(_patches(images, 4))], dim=1)
        P, C = x.shape[1:]
        kept = []
        for frame, glob in zip(self.frame_blocks, self.global_blocks, strict=True):
            x = frame(x.view(B, S, P, C).view(B * S, P, C))
            inside = x.view(B, S, P, C)
            x = glob(x.view(B, S, P, C).view(B, S * P, C))
            kept.append(torch.cat([inside, x.view(B, S, P, C)], dim=-1))
        return kept, self.patch_start_idx


class OfficialLike(nn.Module):
    """The seams of the official VGGT: a camera head on the last output, a dense head on the listed ones."""

    def __init__(self, generator: torch.Generator, dim: int = 32, heads: int = 2, depth: int = 4):
        super().__init__()
        self.aggregator = OfficialAggregator(dim, heads, depth)
        self.camera_head = nn.Linear(2 * dim, 9)
        self.depth_head = nn.Linear(2 * dim, 2)
        self.depth_head.intermediate_layer_idx = [1, depth - 1]
        _random(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        kept, start = self.aggregator(images)
        depth = sum(self.depth_head(kept[i][:, :, start:]) for i in self.depth_head.intermediate_layer_idx)
        return torch.cat([self.camera_head(kept[-1][:, :, 0]).flatten(), depth.flatten()])


def _pi3_kernels(q: Tensor) -> list:
    return [SDPBackend.FLASH_ATTENTION] if q.dtype == torch.bfloat16 else [SDPBackend.MATH]


class Pi3Like(nn.Module):
    """The seams of Pi3: one `decoder` whose odd blocks are global, and attention that forbids kernels."""

    def __init__(self, generator: torch.Generator, dim: int = 32, heads: int = 2, depth: int = 6, poses: bool = False):
        super().__init__()
        self.patch_size, self.patch_start_idx = 4, 3
        self.encoder = nn.Linear(3 * 4 * 4, dim)
        self.position_getter = lambda *size: None
        self.register_token = nn.Parameter(torch.zeros(1, 1, 3, dim))
        self.decoder = nn.ModuleList(ScaledBlock(dim, heads, "xpos", _pi3_kernels) for _ in range(depth))
        if poses:
            self.pose_inject_blk = nn.ModuleList(ScaledBlock(dim, heads, "xpos", _pi3_kernels) for _ in range(2))
        _random(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        B, S = images.shape[:2]
        patches = self.encoder(_patches(images, 4))
        x = torch.cat([self.register_token.repeat(B, S, 1, 1).flatten(0, 1).to(patches.dtype), patches], dim=1)
        P, C = x.shape[1:]
        last = []
        for i, block in enumerate(self.decoder):
            x = x.reshape(B, S * P, C) if i % 2 else x.reshape(B * S, P, C)
            x = block(x)
            if i >= len(self.decoder) - 2:
                last.append(x.reshape(B * S, P, C))
        return torch.cat(last, dim=-1)


class OmegaAggregator(nn.Module):
    """Inter-frame blocks of two kinds: "global" over all tokens, "register" over the special tokens alone."""

    def __init__(self, dim: int, heads: int, depth: int, register: tuple[int, ...]):
        super().__init__()
        self.patch_size, self.patch_token_start = 4, 4
        self.patch_embed = nn.Linear(3 * 4 * 4, dim)
        self.special = nn.Parameter(torch.zeros(1, 4, dim))
        self.frame_blocks = nn.ModuleList(ScaledBlock(dim, heads, "rope") for _ in range(depth))
        self.inter_frame_blocks = nn.ModuleList(ScaledBlock(dim, heads, "rope") for _ in range(depth))
        self.inter_frame_attention_types = ["register" if i in register else "global" for i in range(depth)]
        self.cached_layer_indices = {depth - 1}

    def forward(self, images: Tensor) -> list[Tensor | None]:
        B, S = images.shape[:2]
        patches, first = self.patch_embed(_patches(images, 4)), self.patch_token_start
        x = torch.cat([self.special.expand(B * S, -1, -1), patches], dim=1)
        P, C = x.shape[1:]
        outputs: list[Tensor | None] = []
        for i, kind in enumerate(self.inter_frame_attention_types):
            x = self.frame_blocks[i](x.reshape(B * S, P, C))
            inside = x = x.view(B, S, P, C)
            if kind == "global":
                x = self.inter_frame_blocks[i](x.view(B, S * P, C)).view(B, S, P, C)
            else:
                special = self.inter_frame_blocks[i](x[:, :, :first].reshape(B, S * first, C))
                x = torch.cat([special.view(B, S, first, C), x[:, :, first:]], dim=2)
            outputs.append(torch.cat([inside, x], dim=-1) if i in self.cached_layer_indices else None)
        return outputs


class OmegaLike(nn.Module):
    """The seams of VGGT-Omega."""

    def __init__(self, generator: torch.Generator, dim: int = 32, heads: int = 2, depth: int = 4):
        super().__init__()
        self.aggregator = OmegaAggregator(dim, heads, depth, register=(2,))
        _random(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.aggregator(images)[-1]


LIKE = {"VGGT": OfficialLike, "Pi3": Pi3Like, "Pi3X": partial(Pi3Like, poses=True), "VGGT-Omega": OmegaLike}
"""Stand-ins of the public models by name; each takes a generator."""
