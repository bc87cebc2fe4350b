"""The alternating-attention trunk: frame attention, then global attention, `depth` times."""

import torch
from torch import Tensor, nn

from accel.models.config import VGGTConfig
from accel.models.layers import Block, in_chunks, rope_table
from accel.models.vit import VisionTransformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Aggregator(nn.Module):
    """Tokens of all frames through alternating attention (VGGT, section 3.2).

    The first frame has its own camera and register tokens: it fixes the coordinate system.
    """

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, dim))
        self.patch_embed = VisionTransformer(config)
        blocks = [(dim, config.num_heads, config.mlp_ratio, config.layer_scale, True)] * config.depth
        self.frame_blocks = nn.ModuleList(Block(*b) for b in blocks)
        self.global_blocks = nn.ModuleList(Block(*b) for b in blocks)
        self.set_normalisation()

    def set_normalisation(self) -> None:
        """Register the ImageNet statistics of the input normalisation; they are constants, not state."""
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(f"image_{name}", torch.tensor(value).view(1, 1, 3, 1, 1), persistent=False)

    def special(self, frames: int, first: int = 0) -> Tensor:
        """Camera and register tokens of frames first, first + 1, ... of a scene, (frames, special, C)."""
        both = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        rest = both[1:].expand(frames - (first == 0), -1, -1)
        return torch.cat([both[:1], rest]) if first == 0 else rest

    def patches(self, images: Tensor) -> Tensor:
        """images (frames, 3, H, W) in [0, 1] -> patch tokens (frames, patches, C), in the dtype of the weights."""
        images = (images - self.image_mean[0]) / self.image_std[0]
        return self.patch_embed(images.to(self.camera_token.dtype))

    def forward(self, images: Tensor, *, frames_per_chunk: int | None = None, first: int = 0) -> dict[int, Tensor]:
        """images (B, S, 3, H, W) in [0, 1] -> {layer: (B, S, P, 2C)} for the layers that the heads read.

        Each output is the concatenation of the frame block's and the global block's output. All but the global
        attention itself takes `frames_per_chunk` frames at a time (None: all). first: the index in the scene of
        images[:, 0], where a part of a scene is given (`accel.distributed`).
        """
        B, S, _, H, W = images.shape
        patches = in_chunks(self.patches, (images.flatten(0, 1),), frames_per_chunk, dim=0)
        special = self.special(S, first).to(patches.dtype).expand(B, -1, -1, -1).flatten(0, 1)
        x = torch.cat([special, patches], dim=1)
        del patches
        P, size = x.shape[1], self.config.patch_size
        chunk = None if frames_per_chunk is None else frames_per_chunk * P
        rope = rope_table(
            H // size, W // size, self.config.special_tokens, self.config.head_dim, self.config.rope_base, x
        )
        kept = {}
        for layer, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            x = frame_block(x.reshape(B * S, P, -1), rope, chunk, apart=True)
            frame = x if layer in self.config.kept_layers else None
            x = global_block(x.reshape(B, S * P, -1), rope, chunk)
            if frame is not None:
                kept[layer] = torch.cat([frame.view(B, S, P, -1), x.view(B, S, P, -1)], dim=-1)
            del frame  # or it would live through the next block
        return kept
