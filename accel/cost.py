"""What a forward costs: operations and bytes of every part from the sizes alone, and seconds on a device.

Operations count matrix products, convolutions and attention (a multiply and an add are two); bytes count arrays read
and written besides. A part of b transformer blocks takes

    busy = operations / rate + bytes / bandwidth,    start = b launch,
    seconds = busy + start,   or sqrt(busy^2 + start^2) on a device that queues its kernels (CUDA):

there the next kernel is launched while one runs, so that the longer of the two rules, and both near the crossing. The
rates are those of the parts as a model runs them, norms and activations included: these passes are in the rate, not in
the bytes. A policy other than exact also pays an overhead per layer: selecting, joining and correcting are many
small calls, which at a few hundred tokens outweigh what they save.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from math import ceil
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F

from accel.backbones import Backbone, HeadCost, backbone, block_linear
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import VGGTConfig
from accel.models.layers import Block, rope_table
from accel.policies import BlockSparse, Cost, Exact, Policy, Subsample, attention_cost

RATES = ("linear", "attention", "convolution", "bandwidth")
_FEW = 8  # tokens whose block takes as long as launching its kernels and reading its weights


@dataclass(frozen=True)
class Device:
    """Rates of a device: operations per second of a block without its attention, of the attention kernel, and of the
    dense heads' convolutions; bytes per second of plain copies; bytes per element of the activations; seconds that a
    layer's policy other than exact takes beyond its operations; seconds to launch the kernels of one transformer block;
    whether kernels are queued, so that launching overlaps with running (CUDA). AccelError: a value of another type or
    out of range."""

    name: str
    linear: float
    attention: float
    convolution: float
    bandwidth: float
    itemsize: int = 4
    overhead: float = 0.0
    launch: float = 0.0
    queued: bool = False

    def __post_init__(self) -> None:
        for name in (*RATES, "itemsize", "overhead", "launch"):
            value, may_be_zero = getattr(self, name), name in ("overhead", "launch")
            number = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
            if not number or (value == 0 and not may_be_zero):
                raise AccelError(f"Device.{name}={value!r} must be a positive finite number; use Device.measure()")
        for name, kind in (("name", str), ("itemsize", int), ("queued", bool)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise AccelError(f"Device.{name}={value!r} must be of type {kind.__name__}; use Device.measure()")

    def seconds(self, cost: Cost, kind: str = "linear", *, start: float = 0.0) -> float:
        """Time of one part; kind is "linear", "attention" or "convolution", start the seconds to launch its kernels."""
        busy = cost.flops / getattr(self, kind) + cost.bytes / self.bandwidth
        return math.hypot(busy, start) if self.queued else busy + start

    def attention_seconds(self, policy: Policy, layout: TokenLayout, D: int, H: int) -> float:
        """Time of one layer's attention under a policy, overhead included."""
        cost = policy_cost(policy, layout, D, H, itemsize=self.itemsize, in_place=self.queued)
        return self.seconds(cost, "attention", start=0.0 if policy.name == "exact" else self.overhead)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Device:
        """Inverse of `to_dict`; fields that an older version did not write take their defaults."""
        names = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING}
        if not required <= set(data) <= names:
            raise AccelError(
                f"a Device needs the fields {sorted(required)} and may have {sorted(names - required)}, "
                f"got {sorted(data)}"
            )
        return cls(**data)

    @classmethod
    def measure(
        cls,
        device: torch.device | str = "cpu",
        *,
        config: VGGTConfig | None = None,
        dtype: torch.dtype = torch.float32,
        tokens: int | None = None,
    ) -> Device:
        """Rates of this machine from real kernels at the sizes of `config`, in some 3 s.

        A block of the trunk on `tokens` tokens less its attention, attention among these, two 3 x 3 convolutions of the
        dense heads with an upsampling between, and the sum of two arrays; a block on a few tokens, whose time is that
        of launching; of each the fastest of some calls, since other processes only add. Without a config the sizes are
        VGGT-1B's; without `tokens` 512, on CUDA 8192 (fewer do not fill a GPU).
        """
        config = VGGTConfig() if config is None else config
        device = torch.device(device)
        on_gpu = device.type == "cuda"
        tokens = (8192 if on_gpu else 512) if tokens is None else tokens
        C, H, D, features = config.embed_dim, config.num_heads, config.head_dim, config.dpt_features
        side, images = max(16, config.image_size // 16), 8 if on_gpu else 2

        def filled(*shape: int) -> torch.Tensor:
            size = torch.Size(shape).numel()
            return torch.linspace(-50, 50, size, device=device).sin().reshape(shape).to(dtype)

        with torch.device("meta"):  # nothing is drawn: the random state stays as it is
            block = Block(C, H, config.mlp_ratio, config.layer_scale, qk_norm=True)
        block = block.to_empty(device=device).to(dtype).requires_grad_(False)
        for parameter in block.parameters():
            parameter.copy_(filled(*parameter.shape) / parameter.shape[-1] ** 0.5)
        # the dense heads work in float32, whatever the trunk does
        image = filled(images, features, side, side).float()
        kernel = filled(features, features, 3, 3).float() / features
        large = filled(2**26 if on_gpu else 2**22)

        def convolve() -> torch.Tensor:
            y = image + F.conv2d(F.relu(image), kernel, padding=1)
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
            return F.relu(F.conv2d(y, kernel, padding=1))

        def timed(count: int) -> float:
            """Seconds of a block on so many tokens."""
            x = filled(1, count, C)
            rope = rope_table(1, count - 1, 1, D, config.rope_base, x)
            return _time(lambda: block(x, rope), device)

        with torch.no_grad():
            bandwidth = 3.0 * large.numel() * dtype.itemsize / _time(lambda: large + large, device)
            q = filled(1, H, tokens, D)
            attention = _time(lambda: F.scaled_dot_product_attention(q, q, q), device)
            whole, least = timed(tokens), timed(_FEW)
            convolution = _time(convolve, device)
            tiny = TokenLayout(2, 1, 4, 4)
            query = filled(1, H, tiny.tokens, D)
            policy = Subsample(stride=4, fill="shrink")
            overhead = _time(lambda: policy.attend(query, query, query, tiny), device)
        # the block's time is tokens * each + weights + launch, or without launch where that overlaps
        weights = block_linear(0, C, config.mlp_ratio, dtype.itemsize).bytes / bandwidth
        work = whole - attention - (weights if on_gpu else least)
        each = max(work, 0.1 * whole) / (tokens - (0 if on_gpu else _FEW))  # a bound against noise
        busy = _FEW * each + weights
        launch = max(least**2 - busy**2, 0.0) ** 0.5 if on_gpu else max(least - busy, 0.0)
        name = torch.cuda.get_device_name(device) if on_gpu else f"{device}, {torch.get_num_threads()} threads"
        return cls(
            name=f"{name}, {str(dtype).removeprefix('torch.')}",
            linear=block_linear(1, C, config.mlp_ratio, dtype.itemsize).flops / each,
            attention=4.0 * tokens**2 * C / attention,
            convolution=2.0 * 9 * features**2 * images * 5 * side**2 / convolution,
            bandwidth=bandwidth,
            itemsize=dtype.itemsize,
            overhead=overhead,
            launch=launch,
            queued=on_gpu,
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


def policy_cost(
    policy: Policy, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4, in_place: bool = False
) -> Cost:
    """Cost of one layer under a policy; in_place: with a kernel that reads the blocks of block-sparse attention where
    they lie (flex_attention, on CUDA) instead of gathering them."""
    found = policy.cost(layout, D, H, itemsize=itemsize)
    if in_place and isinstance(policy, BlockSparse):
        found += -1 * policy.gather_cost(layout, D, H, itemsize=itemsize)
    return found


@dataclass(frozen=True)
class ModelCost:
    """Costs of the parts of one forward at batch 1; `global_attention` has one entry per layer that takes a policy.

    blocks: transformer blocks' worth of kernels that each part launches. shortcuts: whether a layer's policy is another
    than exact. register_attention: of blocks between frames that see special tokens alone (VGGT-Omega).
    """

    patch_embed: Cost
    frame_linear: Cost
    frame_attention: Cost
    global_linear: Cost
    global_attention: tuple[Cost, ...]
    head_costs: HeadCost
    register_attention: Cost
    blocks: Mapping[str, float]
    shortcuts: tuple[bool, ...]

    @property
    def heads(self) -> Cost:
        return self.head_costs.linear + self.head_costs.attention + self.head_costs.convolution

    @property
    def total(self) -> Cost:
        parts = (self.patch_embed, self.frame_linear, self.frame_attention, self.global_linear, self.heads)
        return sum((*parts, self.register_attention, *self.global_attention), Cost())

    def seconds(self, device: Device) -> dict[str, float]:
        """Seconds of every part on a device, and "total"."""
        start = {name: count * device.launch for name, count in self.blocks.items()}
        heads = device.seconds(self.head_costs.linear, start=start["token_heads"])
        heads += device.seconds(self.head_costs.attention, "attention")
        heads += device.seconds(self.head_costs.convolution, "convolution", start=start["dense_heads"])
        between = sum(
            device.seconds(cost, "attention", start=device.overhead if shortcut else 0.0)
            for cost, shortcut in zip(self.global_attention, self.shortcuts, strict=True)
        )
        found = {
            "patch_embed": device.seconds(self.patch_embed, start=start["patch_embed"]),
            "frame_linear": device.seconds(self.frame_linear, start=start["frame"]),
            "frame_attention": device.seconds(self.frame_attention, "attention"),
            "global_linear": device.seconds(self.global_linear, start=start["global"]),
            "global_attention": between + device.seconds(self.register_attention, "attention"),
            "heads": heads,
        }
        return found | {"total": sum(found.values())}


def model_cost(
    of: Backbone | VGGTConfig | str,
    layout: TokenLayout,
    policies: Sequence[Policy] | None = None,
    *,
    itemsize: int = 4,
    heads: bool = True,
    frames_per_chunk: int | None = None,
    in_place: bool = False,
) -> ModelCost:
    """Cost of one scene of this layout in a backbone (`accel.backbones`: a VGGT's config, "vggt", "pi3", "vggt-omega").

    policies: one per global layer (None: exact everywhere). heads=False: the trunk alone. frames_per_chunk: frames
    that everything but the global attention takes at a time, which multiplies the launches (None: all at once).
    in_place: see `policy_cost`.
    AccelError: a wrong number of policies, or another number of special tokens than the backbone's.
    """
    net = backbone(of)
    policies = (Exact(),) * net.global_blocks if policies is None else tuple(policies)
    if len(policies) != net.global_blocks:
        raise AccelError(f"{len(policies)} policies for {net.global_blocks} global layers; give one per layer")
    if layout.special != net.special:
        raise AccelError(f"{layout} has {layout.special} special tokens per frame, {net.name} has {net.special}")
    if frames_per_chunk is not None and frames_per_chunk < 1:
        raise AccelError(f"frames_per_chunk={frames_per_chunk} must be at least 1, or None for all at once")
    C, D, H, P, S = net.channels, net.head_dim, net.num_heads, layout.tokens_per_frame, layout.frames
    chunks = 1 if frames_per_chunk is None else ceil(S / frames_per_chunk)
    linear = block_linear(layout.tokens, C, net.mlp_ratio, itemsize)
    registers = S * net.special
    register_attention = attention_cost(registers, registers, D, H, itemsize=itemsize)
    found = net.heads(layout, itemsize) if heads else HeadCost()
    each = {p: policy_cost(p, layout, D, H, itemsize=itemsize, in_place=in_place) for p in set(policies)}
    return ModelCost(
        patch_embed=net.encoder(layout, itemsize),
        frame_linear=net.frame_blocks * linear,
        frame_attention=net.frame_blocks * S * attention_cost(P, P, D, H, itemsize=itemsize),
        global_linear=net.global_blocks * linear
        + net.register_blocks * block_linear(registers, C, net.mlp_ratio, itemsize),
        global_attention=tuple(each[policy] for policy in policies),
        head_costs=found,
        register_attention=net.register_blocks * register_attention,
        blocks={
            "patch_embed": net.encoder_depth * chunks,
            "frame": net.frame_blocks * chunks,
            "global": net.global_blocks * chunks + net.register_blocks,
            "token_heads": found.token_blocks,
            "dense_heads": found.dense_blocks,
        },
        shortcuts=tuple(policy.name != "exact" for policy in policies),
    )


def predict_seconds(
    of: Backbone | VGGTConfig | str,
    layout: TokenLayout,
    device: Device,
    policies: Sequence[Policy] | None = None,
    *,
    heads: bool = True,
    frames_per_chunk: int | None = None,
) -> dict[str, float]:
    """Predicted seconds of every part of one forward on a device, and "total"; arguments as `model_cost`."""
    chosen = {"itemsize": device.itemsize, "in_place": device.queued}
    cost = model_cost(of, layout, policies, heads=heads, frames_per_chunk=frames_per_chunk, **chosen)
    return cost.seconds(device)
