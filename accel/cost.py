"""What a forward costs: operations and bytes of every part from the sizes alone, and seconds on a measured device.

Operations count matrix products, convolutions and attention (a multiply and an add are two); bytes count arrays read
and written besides. Kernels run one after another, so that a part takes

    seconds = operations / rate + bytes / bandwidth

The rates are measured on sequences as the model runs them, norms and activations included: these passes are in the
rate, not in the bytes. A policy other than exact also pays a measured overhead per layer: selecting, joining and
correcting are many small calls, which at a few hundred tokens outweigh what they save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import VGGTConfig
from accel.policies import Cost, Exact, Policy, Subsample, attention_cost


@dataclass(frozen=True)
class Device:
    """Measured rates: operations per second of a block without its attention, of the attention kernel, and of the dense
    heads' convolutions; bytes per second of plain copies; bytes per element of the activations; seconds that a layer's
    policy other than exact takes beyond its operations."""

    name: str
    linear: float
    attention: float
    convolution: float
    bandwidth: float
    itemsize: int = 4
    overhead: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            if not (getattr(self, field.name) > 0 or (field.name == "overhead" and self.overhead == 0)):
                raise AccelError(
                    f"Device.{field.name}={getattr(self, field.name)} must be positive; use Device.measure()"
                )

    def seconds(self, cost: Cost, kind: str = "linear") -> float:
        """Time of one part; kind is "linear", "attention" or "convolution"."""
        return cost.flops / getattr(self, kind) + cost.bytes / self.bandwidth

    def attention_seconds(self, policy: Policy, layout: TokenLayout, D: int, H: int) -> float:
        """Time of one layer's attention under a policy, overhead included."""
        extra = 0.0 if policy.name == "exact" else self.overhead
        return self.seconds(policy.cost(layout, D, H, itemsize=self.itemsize), "attention") + extra

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Device:
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise AccelError(f"a Device needs exactly the fields {sorted(names)}, got {sorted(data)}")
        return cls(**data)

    @classmethod
    def measure(
        cls,
        device: torch.device | str = "cpu",
        *,
        config: VGGTConfig | None = None,
        dtype: torch.dtype = torch.float32,
        tokens: int = 512,
    ) -> Device:
        """Rates of this machine from real kernels at the sizes of `config`, in less than 3 s.

        The linear part of a block on `tokens` tokens, attention among these, two 3 x 3 convolutions of the dense heads
        with an upsampling between, and the sum of two arrays; of each the fastest of some calls, since other processes
        only add. Without a config the sizes are VGGT-1B's.
        """
        config = VGGTConfig() if config is None else config
        device = torch.device(device)
        C, H, D, features = config.embed_dim, config.num_heads, config.head_dim, config.dpt_features
        side = max(16, config.image_size // 16)

        def filled(*shape: int) -> torch.Tensor:
            size = torch.Size(shape).numel()
            return torch.linspace(-50, 50, size, device=device).sin().reshape(shape).to(dtype)

        x, large = filled(tokens, C), filled(2**22)
        into, onto = filled(3 * C, C), filled(C, C) / C
        up, down = filled(4 * C, C) / C, filled(C, 4 * C) / C
        image, kernel = filled(2, features, side, side), filled(features, features, 3, 3) / features
        q = filled(1, H, tokens, D)

        def block() -> torch.Tensor:
            y = F.linear(F.layer_norm(x, (C,)), into)
            y = x + 0.1 * F.linear(y[:, :C] * y[:, C : 2 * C] + y[:, 2 * C :], onto)
            return y + 0.1 * F.linear(F.gelu(F.linear(F.layer_norm(y, (C,)), up)), down)

        def convolve() -> torch.Tensor:
            y = image + F.conv2d(F.relu(image), kernel, padding=1)
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
            return F.relu(F.conv2d(y, kernel, padding=1))

        with torch.no_grad():
            linear = _time(block, device)
            attention = _time(lambda: F.scaled_dot_product_attention(q, q, q), device)
            convolution = _time(convolve, device)
            bandwidth = _time(lambda: large + large, device)
            tiny = TokenLayout(2, 1, 4, 4)
            few = filled(1, H, tiny.tokens, D)
            policy = Subsample(stride=4, fill="shrink")
            overhead = _time(lambda: policy.attend(few, few, few, tiny), device)
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{device}, {torch.get_num_threads()} threads"
        )
        return cls(
            name=f"{name}, {str(dtype).removeprefix('torch.')}",
            linear=24.0 * tokens * C * C / linear,
            attention=4.0 * tokens**2 * C / attention,
            convolution=2.0 * 9 * features**2 * 2 * 5 * side**2 / convolution,
            bandwidth=3.0 * large.numel() * dtype.itemsize / bandwidth,
            itemsize=dtype.itemsize,
            overhead=overhead,
        )


def _time(call: Callable[[], Any], device: torch.device, *, limit: float = 0.4, repeats: int = 50) -> float:
    """Least seconds of a call after two warm-up calls, within about `limit` seconds."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(2):
        once()
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeats and sum(times) < limit):
        times.append(once())
    return min(times)


@dataclass(frozen=True)
class ModelCost:
    """Costs of the parts of one forward at batch 1; `global_attention` has one entry per layer."""

    patch_embed: Cost
    frame_linear: Cost
    frame_attention: Cost
    global_linear: Cost
    global_attention: tuple[Cost, ...]
    heads: Cost

    @property
    def total(self) -> Cost:
        parts = (self.patch_embed, self.frame_linear, self.frame_attention, self.global_linear, self.heads)
        return sum((*parts, *self.global_attention), Cost())

    def seconds(self, device: Device) -> dict[str, float]:
        """Seconds of every part on a device, and "total"."""
        found = {
            "patch_embed": device.seconds(self.patch_embed),
            "frame_linear": device.seconds(self.frame_linear),
            "frame_attention": device.seconds(self.frame_attention, "attention"),
            "global_linear": device.seconds(self.global_linear),
            "global_attention": sum(device.seconds(cost, "attention") for cost in self.global_attention),
            "heads": device.seconds(self.heads, "convolution"),
        }
        return found | {"total": sum(found.values())}


def model_cost(
    config: VGGTConfig, layout: TokenLayout, policies: Sequence[Policy] | None = None, *, itemsize: int = 4
) -> ModelCost:
    """Cost of VGGT(config) on one scene of this layout, with a policy per global layer (None: exact everywhere)."""
    policies = (Exact(),) * config.depth if policies is None else tuple(policies)
    if len(policies) != config.depth:
        raise AccelError(f"{len(policies)} policies for {config.depth} global layers; give one per layer")
    C, D, H, P = config.embed_dim, config.head_dim, config.num_heads, layout.tokens_per_frame
    linear = config.depth * _block_linear(layout.tokens, C, config.mlp_ratio, itemsize)
    return ModelCost(
        patch_embed=_patch_embed(config, layout, itemsize),
        frame_linear=linear,
        frame_attention=config.depth * layout.frames * attention_cost(P, P, D, H, itemsize=itemsize),
        global_linear=linear,
        global_attention=tuple(policy.cost(layout, D, H, itemsize=itemsize) for policy in policies),
        heads=_camera_head(config, layout) + sum((_dense_head(config, layout, c) for c in (1, 3)), Cost()),
    )


def _block_linear(tokens: float, C: int, mlp_ratio: float, itemsize: int) -> Cost:
    """A transformer block without its attention: qkv, projection, MLP: (8 + 4 mlp_ratio) C^2 operations per token."""
    weights = (4 + 2 * mlp_ratio) * C * C
    return Cost(2 * weights * tokens, weights * itemsize)


def _patch_embed(config: VGGTConfig, layout: TokenLayout, itemsize: int) -> Cost:
    C, p = config.embed_dim, config.patch_size
    patches = layout.patches_per_frame
    if config.vit_stem == "patch":
        stem = 2.0 * 3 * p * p * C * patches
    else:
        quarter = (p / 4) ** 2  # 1/4-resolution pixels per patch; the stem has pixels at 1/2, 1/4 and 1/p
        stem = 2.0 * patches * (16 * 3 * C / 4 * 4 * quarter + 16 * C / 4 * C / 2 * quarter + C / 2 * C * quarter)
    tokens = 1 + config.vit_registers + patches
    block = _block_linear(tokens, C, config.mlp_ratio, itemsize)
    block += attention_cost(tokens, tokens, C // config.vit_heads, config.vit_heads, itemsize=itemsize)
    return layout.frames * (config.vit_depth * block + Cost(stem))


def _camera_head(config: VGGTConfig, layout: TokenLayout) -> Cost:
    """On one token of 2 C channels per frame, in float32."""
    C, S = 2 * config.embed_dim, layout.frames
    block = _block_linear(S, C, config.mlp_ratio, 4)
    block += attention_cost(S, S, C // config.camera_heads, config.camera_heads)
    weights = 9 * C + 3 * C * C + C * C / 2 + 9 * C / 2
    step = config.camera_depth * block + Cost(2.0 * weights * S, 4.0 * weights)
    return config.camera_iterations * step


def _dense_head(config: VGGTConfig, layout: TokenLayout, channels: int) -> Cost:
    """A DPT head with so many output channels, in float32: the convolutions of `accel.models.dpt_head` in turn."""
    C, F_, p = 2 * config.embed_dim, config.dpt_features, config.patch_size
    grid = (layout.grid_h, layout.grid_w)
    total, sizes = Cost(), []

    def conv(c_in: float, c_out: float, size: tuple[int, int], kernel: int = 3) -> Cost:
        return Cost(2.0 * kernel * kernel * c_in * c_out * size[0] * size[1])

    for c, scale in zip(config.dpt_channels, config.dpt_scales, strict=True):
        total += conv(C, c, grid, 1)
        if scale > 1:
            size = tuple(int(scale) * n for n in grid)
            total += Cost(2.0 * c * c * size[0] * size[1])
        elif scale < 1:
            size = tuple((n - 1) // round(1 / scale) + 1 for n in grid)
            total += conv(c, c, size)
        else:
            size = grid
        total += conv(c, F_, size)
        sizes.append(size)
    finest = tuple(2 * n for n in sizes[0])
    for i, (size, onto) in enumerate(zip(reversed(sizes), [sizes[2], sizes[1], sizes[0], finest], strict=True)):
        total += (2 if i == 0 else 4) * conv(F_, F_, size) + conv(F_, F_, onto, 1)
    pixels = (layout.grid_h * p, layout.grid_w * p)
    total += conv(F_, F_ / 2, finest) + conv(F_ / 2, config.dpt_hidden, pixels)
    total += conv(config.dpt_hidden, channels + 1, pixels, 1)
    return layout.frames * total
