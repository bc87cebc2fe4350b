"""VGGT: photographs to cameras, depth and points."""

import torch
from torch import Tensor, nn

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.aggregator import Aggregator
from accel.models.camera_head import CameraHead
from accel.models.config import VGGTConfig
from accel.models.dpt_head import DPTHead

TOKENS_PER_CHUNK = 8192
"""Tokens that the frame-wise parts of a forward take at once by default: enough to keep a GPU busy."""


def default_chunk(layout: TokenLayout) -> int:
    """The frames that are processed at once when nothing is said: those of about 8,192 tokens."""
    return max(1, TOKENS_PER_CHUNK // layout.tokens_per_frame)


class VGGT(nn.Module):
    """Visual Geometry Grounded Transformer (Wang et al., CVPR 2025), without the track head.

    Parameter names are those of the official checkpoint. The aggregator keeps only the layers that the heads read,
    and everything but the global attention itself runs over `frames_per_chunk` frames at a time (None: those of about
    8,192 tokens): memory grows neither with depth nor, beyond the tokens and the outputs themselves, with the number of
    frames. Heads run in float32 also under autocast and under a trunk in bfloat16.
    """

    def __init__(self, config: VGGTConfig, frames_per_chunk: int | None = None):
        super().__init__()
        self.config = config
        self.frames_per_chunk = frames_per_chunk
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        self.depth_head = DPTHead(config, channels=1, activation="exp")
        self.point_head = DPTHead(config, channels=3, activation="inv_log")

    def layout(self, images: Tensor) -> TokenLayout:
        """The token layout of a batch of images (B, S, 3, H, W) or (S, 3, H, W)."""
        frames, _, height, width = images.shape[-4:]
        size = self.config.patch_size
        return TokenLayout(frames, self.config.special_tokens, height // size, width // size)

    def chunk(self, layout: TokenLayout) -> int:
        """The frames that are processed at once. AccelError where `frames_per_chunk` is no positive integer."""
        if self.frames_per_chunk is None:
            return default_chunk(layout)
        if type(self.frames_per_chunk) is not int or self.frames_per_chunk < 1:
            raise AccelError(f"frames_per_chunk={self.frames_per_chunk!r} must be an integer of at least 1, or None")
        return self.frames_per_chunk

    def check_images(self, images: Tensor) -> None:
        """Raise AccelError unless images are (B, S, 3, H, W) with sides that are multiples of the patch size."""
        if images.ndim != 5 or images.shape[2] != 3 or images.shape[1] < 1:
            raise AccelError(f"images have shape {tuple(images.shape)}; give (batch, frames, 3, height, width)")
        height, width = images.shape[-2:]
        size = self.config.patch_size
        if height % size or width % size:
            raise AccelError(f"images are {height}x{width} pixels; both sides must be multiples of {size}")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, S, 3, H, W) in [0, 1] -> pose_enc (B, S, 9), depth (B, S, H, W, 1), depth_conf (B, S, H, W),
        world_points (B, S, H, W, 3), world_points_conf (B, S, H, W); lengths in units of the scene scale."""
        self.check_images(images)
        kept = self.aggregator(images, frames_per_chunk=self.chunk(self.layout(images)))
        return self.camera(kept) | self.dense(kept, *images.shape[-2:])

    def camera(self, kept: dict[int, Tensor]) -> dict[str, Tensor]:
        """The poses from the camera tokens of the last layer of the aggregator."""
        tokens = kept[self.config.depth - 1][:, :, 0].float()
        with torch.autocast(tokens.device.type, enabled=False):
            return {"pose_enc": self.camera_head(tokens)}

    def dense(self, kept: dict[int, Tensor], height: int, width: int) -> dict[str, Tensor]:
        """Depth and points from the kept layers of the aggregator, each frame by itself."""
        special, size = self.config.special_tokens, self.config.patch_size
        frames = next(iter(kept.values())).shape[1]
        chunk = self.chunk(TokenLayout(frames, special, height // size, width // size))
        with torch.autocast(next(iter(kept.values())).device.type, enabled=False):
            depth, depth_conf = self.depth_head(kept, height, width, special, chunk)
            points, points_conf = self.point_head(kept, height, width, special, chunk)
        return {
            "depth": depth,
            "depth_conf": depth_conf,
            "world_points": points,
            "world_points_conf": points_conf,
        }
