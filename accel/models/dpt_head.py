"""DPT head: dense predictions from the tokens of four layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.models.config import VGGTConfig
from accel.models.layers import in_chunks


def grid_embedding(height: int, width: int, channels: int, aspect: float, like: Tensor) -> Tensor:
    """Sine-cosine embedding of the pixel position, (channels, height, width), base 100.

    Positions span the image rectangle of the given aspect ratio, normalised so that its half-diagonal is 1.
    """
    diagonal = (aspect**2 + 1) ** 0.5
    spans = ((aspect / diagonal, width), (1 / diagonal, height))
    x, y = (torch.linspace(-s * (n - 1) / n, s * (n - 1) / n, n, device=like.device) for s, n in spans)
    omega = 100.0 ** -(torch.arange(channels // 4, dtype=torch.float64, device=like.device) / (channels / 4))
    parts = []
    for position in (x[None, :].expand(height, width), y[:, None].expand(height, width)):
        angle = position.double() * omega[:, None, None]
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts).to(like.dtype)


def add_grid(x: Tensor, aspect: float) -> Tensor:
    return x + 0.1 * grid_embedding(x.shape[2], x.shape[3], x.shape[1], aspect, x)


def resample(channels: int, scale: float) -> nn.Module:
    """Resize a feature map by a learned layer: transposed convolution up, nothing at 1, strided convolution down."""
    if scale > 1:
        return nn.ConvTranspose2d(channels, channels, int(scale), int(scale))
    if scale == 1:
        return nn.Identity()
    return nn.Conv2d(channels, channels, 3, round(1 / scale), 1)


class ResidualConv(nn.Module):
    """Two 3x3 convolutions around a skip.

    The skip carries relu(x), not x: upstream's first ReLU works in place, and the published weights were trained so.
    """

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, 1, 1)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


class Fusion(nn.Module):
    """Add a lateral feature map, refine, resize to `size`, project."""

    def __init__(self, features: int, lateral: bool = True):
        super().__init__()
        if lateral:
            self.resConfUnit1 = ResidualConv(features)
        self.resConfUnit2 = ResidualConv(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, lateral: Tensor | None, size: tuple[int, int]) -> Tensor:
        if lateral is not None:
            x = x + self.resConfUnit1(lateral)
        x = F.interpolate(self.resConfUnit2(x), size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Scratch(nn.Module):
    """Convolutions of the fusion pyramid, under the names of the official state dict."""

    def __init__(self, config: VGGTConfig, out_channels: int):
        super().__init__()
        features = config.dpt_features
        for i, channels in enumerate(config.dpt_channels, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(channels, features, 3, 1, 1, bias=False))
            setattr(self, f"refinenet{i}", Fusion(features, lateral=i < 4))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, 1, 1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, config.dpt_hidden, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(config.dpt_hidden, out_channels, 1),
        )


class DPTHead(nn.Module):
    """Tokens of four layers -> (values (B, S, H, W, channels), confidence (B, S, H, W)) at pixel resolution.

    activation "exp" for depth, "inv_log" (sign(y)(e^|y| - 1)) for points; confidence 1 + e^c. Frames are processed
    `chunk` at a time, so that memory does not grow with their number. Source: DPT (2103.13413), VGGT section 3.3.
    """

    def __init__(self, config: VGGTConfig, channels: int, activation: str):
        super().__init__()
        self.config, self.activation = config, activation
        dim = 2 * config.embed_dim
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in config.dpt_channels)
        self.resize_layers = nn.ModuleList(
            resample(c, s) for c, s in zip(config.dpt_channels, config.dpt_scales, strict=True)
        )
        self.scratch = Scratch(config, channels + 1)

    def features(self, tokens: list[Tensor], height: int, width: int) -> list[Tensor]:
        """Four token maps (B, P, 2C) without specials -> the four feature maps of the pyramid, finest first."""
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        maps = []
        for i, (x, project, resize) in enumerate(zip(tokens, self.projects, self.resize_layers, strict=True), start=1):
            x = self.norm(x).transpose(1, 2).unflatten(2, grid)
            x = resize(add_grid(project(x), width / height))
            maps.append(getattr(self.scratch, f"layer{i}_rn")(x))
        return maps

    def dense(self, tokens: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """One chunk of frames: tokens (B, P, 2C) of four layers -> values (B, H, W, channels), confidence (B, H, W)."""
        finest, second, third, x = self.features(tokens, height, width)
        s = self.scratch
        x = s.refinenet4(x, None, third.shape[2:])
        x = s.refinenet3(x, third, second.shape[2:])
        x = s.refinenet2(x, second, finest.shape[2:])
        x = s.refinenet1(x, finest, tuple(2 * n for n in finest.shape[2:]))
        x = F.interpolate(s.output_conv1(x), (height, width), mode="bilinear", align_corners=True)
        x = s.output_conv2(add_grid(x, width / height)).permute(0, 2, 3, 1)
        values, confidence = x[..., :-1], 1 + x[..., -1].exp()
        if self.activation == "exp":
            return values.exp(), confidence
        return values.sign() * values.abs().expm1(), confidence

    def forward(
        self, kept: dict[int, Tensor], height: int, width: int, special: int, chunk: int
    ) -> tuple[Tensor, Tensor]:
        B = kept[self.config.dpt_layers[0]].shape[0]

        def dense(*layers: Tensor) -> tuple[Tensor, Tensor]:
            tokens = [x[:, :, special:].flatten(0, 1).float() for x in layers]
            values, confidence = self.dense(tokens, height, width)
            return values.unflatten(0, (B, -1)), confidence.unflatten(0, (B, -1))

        return in_chunks(dense, tuple(kept[i] for i in self.config.dpt_layers), chunk, dim=1)
