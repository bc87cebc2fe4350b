"""The patch embedding: a DINOv2 vision transformer with register tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.models.config import VGGTConfig
from accel.models.layers import Block


class PatchProjection(nn.Module):
    """One non-overlapping convolution from pixels to patch tokens."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Three strided convolutions from pixels to patch tokens (Xiao et al., 2106.14881), for small models."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, dim // 4, 4, 2, 1),
            nn.GELU(),
            nn.Conv2d(dim // 4, dim // 2, 4, 2, 1),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, patch_size // 4, patch_size // 4),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class VisionTransformer(nn.Module):
    """DINOv2 ViT with registers (2304.07193, 2309.16588); returns the normalised patch tokens (B, patches, C)."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        dim = config.embed_dim
        self.patch_size = config.patch_size
        self.grid = config.image_size // config.patch_size
        self.prefix = 1 + config.vit_registers
        self.patch_embed = (PatchProjection if config.vit_stem == "patch" else ConvStem)(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.vit_registers, dim)) if config.vit_registers else None
        self.blocks = nn.ModuleList(
            Block(dim, config.vit_heads, config.mlp_ratio, config.vit_layer_scale, eps=1e-6)
            for _ in range(config.vit_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def position(self, grid_h: int, grid_w: int) -> Tensor:
        """The learned position embedding resampled to another grid, (1, 1 + grid_h*grid_w, C); antialiased bicubic."""
        if grid_h == grid_w == self.grid:
            return self.pos_embed
        square = self.pos_embed[:, 1:].float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        resized = F.interpolate(square, (grid_h, grid_w), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, :1], resized.to(self.pos_embed.dtype)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        grid_h, grid_w = (size // self.patch_size for size in images.shape[-2:])
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.position(grid_h, grid_w)
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, self.prefix :])
