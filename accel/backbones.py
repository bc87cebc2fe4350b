"""The backbones that the cost model knows, as sizes: one frozen description each, from which operations are counted.

VGGT: 24 frame and 24 global blocks, a camera head of four iterations, dense heads after DPT. Pi3: 18 and 18 blocks and
three decoders of five blocks that attend within frames. VGGT-Omega: 24 frame blocks, 19 global ones and 5 that see the
special tokens alone, a camera head on all special tokens, one dense head without convolutions at full resolution.
Sources: the public code of the three (facebookresearch/vggt, yyfz/Pi3, facebookresearch/vggt-omega).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import VGGT_1B, VGGTConfig
from accel.policies import Cost, attention_cost


def block_linear(tokens: float, C: int, mlp_ratio: float, itemsize: int) -> Cost:
    """A transformer block without its attention: qkv, projection, MLP: (8 + 4 mlp_ratio) C^2 operations per token."""
    weights = (4 + 2 * mlp_ratio) * C * C
    return Cost(2 * weights * tokens, weights * itemsize)


@dataclass(frozen=True)
class HeadCost:
    """Operations of heads by the kernel that does them, and how many transformer blocks' kernels they launch."""

    linear: Cost = field(default_factory=Cost)
    attention: Cost = field(default_factory=Cost)
    convolution: Cost = field(default_factory=Cost)
    token_blocks: float = 0.0
    dense_blocks: float = 0.0

    def __add__(self, other: HeadCost) -> HeadCost:
        return HeadCost(
            self.linear + other.linear,
            self.attention + other.attention,
            self.convolution + other.convolution,
            self.token_blocks + other.token_blocks,
            self.dense_blocks + other.dense_blocks,
        )


@dataclass(frozen=True)
class TokenHead:
    """Transformer blocks on some tokens: the first `tokens` of each frame (None: all), attending across frames or not.

    weights: of the linear layers besides, each applied to every one of these tokens; repeats: iterations of the whole.
    """

    channels: int
    depth: int
    num_heads: int
    tokens: int | None = None
    across_frames: bool = False
    weights: float = 0.0
    repeats: int = 1
    itemsize: int | None = 4

    def cost(self, layout: TokenLayout, mlp_ratio: float, itemsize: int) -> HeadCost:
        C, item = self.channels, self.itemsize or itemsize
        each = layout.tokens_per_frame if self.tokens is None else self.tokens
        total = layout.frames * each
        rows, times = (total, 1) if self.across_frames else (each, layout.frames)
        linear = self.depth * block_linear(total, C, mlp_ratio, item)
        linear += Cost(2.0 * self.weights * total, self.weights * item)
        attention = attention_cost(rows, rows, C // self.num_heads, self.num_heads, itemsize=item)
        return HeadCost(
            self.repeats * linear, self.repeats * self.depth * times * attention, token_blocks=self.repeats * self.depth
        )


@dataclass(frozen=True)
class DenseHead:
    """A DPT head (Ranftl et al., 2021) in float32: four maps projected, resampled and fused, then `outputs` maps.

    hidden: channels of the two last convolutions at full resolution; None: one 1x1 convolution at the resolution of
    the finest map, whose channels are shuffled into pixels.
    """

    in_channels: int
    features: int
    channels: tuple[int, ...]
    scales: tuple[float, ...]
    outputs: int
    hidden: int | None
    frames_per_chunk: int = 8

    def cost(self, layout: TokenLayout, patch_size: int) -> HeadCost:
        F = self.features
        grid, total, sizes = (layout.grid_h, layout.grid_w), Cost(), []
        for c, scale in zip(self.channels, self.scales, strict=True):
            total += _conv(self.in_channels, c, grid, 1)
            size = grid
            if scale > 1:
                size = tuple(int(scale) * n for n in grid)
                total += Cost(2.0 * c * c * size[0] * size[1])
            elif scale < 1:
                size = tuple((n - 1) // round(1 / scale) + 1 for n in grid)
                total += _conv(c, c, size)
            total += _conv(c, F, size)
            sizes.append(size)
        finest = sizes[0] if self.hidden is None else tuple(2 * n for n in sizes[0])
        for i, (size, onto) in enumerate(zip(reversed(sizes), [sizes[2], sizes[1], sizes[0], finest], strict=True)):
            total += (2 if i == 0 else 4) * _conv(F, F, size) + _conv(F, F, onto, 1)
        pixels = (layout.grid_h * patch_size, layout.grid_w * patch_size)
        if self.hidden is None:
            shuffle = pixels[0] * pixels[1] / (finest[0] * finest[1])
            total += _conv(F, self.outputs * shuffle, finest, 1)
        else:
            total += _conv(F, F / 2, finest) + _conv(F / 2, self.hidden, pixels)
            total += _conv(self.hidden, self.outputs, pixels, 1)
        # some 70 kernels, as many as three transformer blocks launch
        return HeadCost(convolution=layout.frames * total, dense_blocks=3 * ceil(layout.frames / self.frames_per_chunk))


def _conv(c_in: float, c_out: float, size: tuple[int, int], kernel: int = 3) -> Cost:
    return Cost(2.0 * kernel * kernel * c_in * c_out * size[0] * size[1])


@dataclass(frozen=True)
class Backbone:
    """Sizes of a network that alternates attention inside each frame with attention between frames.

    special: tokens of each frame before its patches. global_blocks attend among all tokens (where a policy can be
    applied), register_blocks among the special tokens alone. encoder_*: the image encoder, a ViT on each frame.
    """

    name: str
    patch_size: int
    special: int
    frame_blocks: int
    global_blocks: int
    register_blocks: int = 0
    channels: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    encoder_depth: int = 24
    encoder_heads: int = 16
    encoder_special: int = 5
    encoder_stem: str = "patch"
    token_heads: tuple[TokenHead, ...] = ()
    dense_heads: tuple[DenseHead, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.channels // self.num_heads

    def layout(self, frames: int, height: int, width: int) -> TokenLayout:
        """The tokens of so many frames of height x width pixels, which patches must fill: AccelError otherwise."""
        p = self.patch_size
        if height % p or width % p or min(height, width) < p:
            raise AccelError(
                f"{height}x{width} pixels are no whole number of {p}-pixel patches of {self.name}; "
                f"use for example {max(1, height // p) * p}x{max(1, width // p) * p}"
            )
        return TokenLayout(frames, self.special, height // p, width // p)

    def encoder(self, layout: TokenLayout, itemsize: int) -> Cost:
        """The image encoder on all frames, its attention included."""
        C, p, patches = self.channels, self.patch_size, layout.patches_per_frame
        if self.encoder_stem == "patch":
            stem = 2.0 * 3 * p * p * C * patches
        else:
            quarter = (p / 4) ** 2  # 1/4-resolution pixels per patch; the stem has pixels at 1/2, 1/4 and 1/p
            stem = 2.0 * patches * (16 * 3 * C / 4 * 4 * quarter + 16 * C / 4 * C / 2 * quarter + C / 2 * C * quarter)
        tokens = self.encoder_special + patches
        block = block_linear(tokens, C, self.mlp_ratio, itemsize)
        block += attention_cost(tokens, tokens, C // self.encoder_heads, self.encoder_heads, itemsize=itemsize)
        return layout.frames * (self.encoder_depth * block + Cost(stem))

    def heads(self, layout: TokenLayout, itemsize: int) -> HeadCost:
        """All heads together."""
        found = [head.cost(layout, self.mlp_ratio, itemsize) for head in self.token_heads]
        return sum(found + [head.cost(layout, self.patch_size) for head in self.dense_heads], HeadCost())


def _vggt(config: VGGTConfig, name: str) -> Backbone:
    C = 2 * config.embed_dim  # the heads read frame and global outputs side by side
    camera = TokenHead(
        C,
        config.camera_depth,
        config.camera_heads,
        tokens=1,
        across_frames=True,
        weights=9 * C + 3 * C * C + C * C / 2 + 9 * C / 2,  # embedding, modulation, the two layers of the output
        repeats=config.camera_iterations,
    )
    sizes = (C, config.dpt_features, tuple(config.dpt_channels), tuple(config.dpt_scales))
    return Backbone(
        name=name,
        patch_size=config.patch_size,
        special=config.special_tokens,
        frame_blocks=config.depth,
        global_blocks=config.depth,
        channels=config.embed_dim,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        encoder_depth=config.vit_depth,
        encoder_heads=config.vit_heads,
        encoder_special=1 + config.vit_registers,
        encoder_stem=config.vit_stem,
        token_heads=(camera,),
        dense_heads=tuple(DenseHead(*sizes, outputs=n + 1, hidden=config.dpt_hidden) for n in (1, 3)),
    )


def _pi3() -> Backbone:
    def decoder(out: int, last: float) -> TokenHead:
        weights = 2048 * 1024 + 1024 * out + last
        return TokenHead(1024, depth=5, num_heads=16, weights=weights, itemsize=None)

    # points and confidence: a linear layer to the 14x14 pixels of a patch; camera: two units of three 512x512 layers
    heads = (decoder(1024, 1024 * 3 * 196), decoder(1024, 1024 * 196), decoder(512, 2 * 3 * 512**2))
    return Backbone("pi3", patch_size=14, special=5, frame_blocks=18, global_blocks=18, token_heads=heads)


def _omega() -> Backbone:
    camera = TokenHead(2048, depth=4, num_heads=16, tokens=17, across_frames=True)
    dense = DenseHead(2048, 256, (256, 512, 1024, 1024), (4, 2, 1, 0.5), outputs=2, hidden=None)
    return Backbone(
        "vggt-omega",
        patch_size=16,
        special=17,
        frame_blocks=24,
        global_blocks=19,
        register_blocks=5,
        token_heads=(camera,),
        dense_heads=(dense,),
    )


def backbones() -> dict[str, Backbone]:
    """The known backbones by name: "vggt", "pi3", "vggt-omega", all of about a billion parameters."""
    return {b.name: b for b in (_vggt(VGGT_1B, "vggt"), _pi3(), _omega())}


def backbone(of: Backbone | VGGTConfig | str) -> Backbone:
    """The description of a VGGT's config, or of a known name; AccelError for an unknown one."""
    if isinstance(of, Backbone):
        return of
    if isinstance(of, VGGTConfig):
        return _vggt(of, "vggt")
    known = backbones()
    if of not in known:
        raise AccelError(f"{of!r} is no known backbone; use one of {list(known)}, or a VGGTConfig")
    return known[of]
