"""The one description of a VGGT: every size of the architecture as a value."""

import json
import math
from dataclasses import asdict, dataclass, fields

from accel.errors import AccelError

MAY_BE_ZERO = ("num_register_tokens", "vit_registers", "camera_depth", "dpt_layers")


def _fits(value: object, like: object, zero: bool) -> bool:
    """Whether a value is of the type of a default, and its numbers are finite and positive, or zero where allowed."""
    if isinstance(like, tuple):
        return isinstance(value, tuple) and all(_fits(x, like[-1], zero) for x in value)
    if isinstance(like, str):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float if isinstance(like, float) else int):
        return False
    return math.isfinite(value) and (value > 0 or (zero and value == 0))


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of a VGGT (Wang et al., CVPR 2025); the defaults are VGGT-1B.

    `layer` indices count frame/global pairs, 0 to depth - 1. `dpt_scales` are the resampling factors of the four
    feature maps before fusion (DPT, Ranftl et al. 2021, "reassemble").
    """

    image_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    rope_base: float = 100.0
    layer_scale: float = 0.01
    vit_stem: str = "patch"
    vit_depth: int = 24
    vit_heads: int = 16
    vit_registers: int = 4
    vit_layer_scale: float = 1.0
    camera_depth: int = 4
    camera_heads: int = 16
    camera_iterations: int = 4
    camera_layer_scale: float = 0.01
    dpt_layers: tuple[int, ...] = (4, 11, 17, 23)
    dpt_features: int = 256
    dpt_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_scales: tuple[float, ...] = (4, 2, 1, 0.5)
    dpt_hidden: int = 32

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("dpt_") and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not _fits(value, field.default, field.name in MAY_BE_ZERO):
                raise AccelError(f"{field.name}={value!r} is not a valid size; give one like {field.default!r}")
        if self.vit_stem not in ("patch", "conv"):
            raise AccelError(f'vit_stem="{self.vit_stem}" is unknown; use "patch" or "conv"')
        if self.image_size % self.patch_size:
            raise AccelError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            raise AccelError(
                f"embed_dim={self.embed_dim} over num_heads={self.num_heads} must give a head dimension divisible by 4"
            )
        if not len(self.dpt_layers) == len(self.dpt_channels) == len(self.dpt_scales) == 4:
            raise AccelError("dpt_layers, dpt_channels and dpt_scales must have four entries each")
        if max(self.dpt_layers) >= self.depth:
            raise AccelError(f"dpt_layers={self.dpt_layers} reads beyond depth={self.depth}")

    @property
    def special_tokens(self) -> int:
        """Camera and register tokens of each frame; they precede the patches."""
        return 1 + self.num_register_tokens

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers that a head reads: the only ones whose output a forward keeps."""
        return tuple(sorted({*self.dpt_layers, self.depth - 1}))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "VGGTConfig":
        """Inverse of `to_json`; raises AccelError for a field this version does not know."""
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise AccelError(f"the configuration is not JSON ({error}); write it by VGGTConfig.to_json") from error
        if not isinstance(values, dict):
            raise AccelError(f"the configuration is {values!r}, not a JSON object; write it by VGGTConfig.to_json")
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise AccelError(f"configuration has unknown fields {sorted(unknown)}; it was written by another version")
        return cls(**values)


VGGT_1B = VGGTConfig()

# DINOv2 ViT-S/14 and four pairs: the small instance of the official classes that the parity data was computed with.
PARITY_SMALL = VGGTConfig(embed_dim=384, depth=4, num_heads=6, vit_depth=12, vit_heads=6, dpt_layers=(0, 1, 2, 3))

TESTBED = VGGTConfig(
    image_size=64,
    patch_size=8,
    embed_dim=128,
    depth=6,
    num_heads=4,
    num_register_tokens=3,
    layer_scale=0.25,
    vit_stem="conv",
    vit_depth=3,
    vit_heads=4,
    vit_registers=0,
    vit_layer_scale=0.25,
    camera_depth=0,
    camera_heads=8,
    camera_iterations=1,
    camera_layer_scale=0.25,
    dpt_layers=(1, 2, 4, 5),
    dpt_features=32,
    dpt_channels=(32, 32, 32, 32),
    dpt_scales=(2, 1, 1, 0.5),
    dpt_hidden=16,
)
