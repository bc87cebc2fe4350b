"""Peak memory of a forward of `accel.models.VGGT`, from the sizes alone; what is free; how many frames fit.

The forward is a sequence of stages, and what one stage holds the next may use again, so the peak is a maximum over
the stages and not a sum. With N tokens of C channels, one token array is t = N C itemsize; a chunk of frames is u of
it. Beside weights, images and the layers kept so far for the heads, a global layer holds

    while q, k, v are made    x, its norm, q, k, v: 5 t, and 9 u       (qkv, norms and rotation of one chunk)
    while it attends          x, its norm, q, k, v, output: 6 t, log-sum-exp, and the policy's workspace
    in its MLP                x, attended, new: 3 t, and (2 + 2 mlp_ratio) u

and the dense heads the kept layers, their outputs, and the feature maps of one chunk. Counted are the tensors of the
program (experiments.memory_vs_frames compares with a count of them); an allocator's fragments and a kernel's own
workspace come on top, for which `MARGIN` leaves room.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models import VGGT, VGGTConfig
from accel.models.vggt import default_chunk
from accel.policies import Exact, Policy

MARGIN = 0.9
"""Share of the free memory that a plan may use: the rest is for fragments, kernels and what else runs."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one forward at batch 1, by what they hold.

    weights and images: always there. kept: the layers that the heads read, when all are made. stream: one token array.
    layers: at each global layer while it attends, beside weights and images: what is kept by then, x, its norm, q, k,
    v, the output, the log-sum-exp and the policy's workspace. embedding: at the patch embedding. chunk: in the blocks
    outside attention, at the last layer. outputs: depth and points with their confidences. heads: temporaries of the
    dense heads on one chunk, less the outputs that are not there yet.
    """

    weights: float
    images: float
    kept: float
    stream: float
    layers: tuple[float, ...]
    embedding: float
    chunk: float
    heads: float
    outputs: float

    @property
    def layer(self) -> float:
        """Bytes at the worst global layer, beside weights and images."""
        return max(self.layers)

    @property
    def stages(self) -> dict[str, float]:
        """Bytes at the peak of each stage, weights and images included."""
        found = {
            "patch embedding": self.embedding,
            "global attention": self.layer,
            "blocks": self.chunk,
            "joining kept layers": self.kept + 2 * self.stream,
            "dense heads": self.kept + self.outputs + self.heads,
        }
        return {name: self.weights + self.images + value for name, value in found.items()}

    @property
    def peak(self) -> float:
        """The maximum over the stages."""
        return max(self.stages.values())

    @property
    def stage(self) -> str:
        """The stage at which the peak is."""
        return max(self.stages, key=self.stages.get)


def peak_memory(
    config: VGGTConfig,
    layout: TokenLayout,
    policies: Sequence[Policy] | None = None,
    *,
    frames_per_chunk: int | None = None,
    itemsize: int = 4,
) -> Memory:
    """Memory of VGGT(config) on one scene of this layout, with a policy per global layer (None: exact everywhere).

    itemsize: bytes per element of the trunk (2 for bfloat16); heads and outputs are float32. frames_per_chunk None is
    the model's default. Exact but for temporaries below one per cent: means, masks, the camera head's small sequences.
    """
    if policies is not None and len(policies) != config.depth:
        raise AccelError(f"{len(policies)} policies for {config.depth} global layers; give one per layer")
    S, P, C, r = layout.frames, layout.tokens_per_frame, config.embed_dim, config.mlp_ratio
    height, width = (n * config.patch_size for n in (layout.grid_h, layout.grid_w))
    frames = min(frames_per_chunk or default_chunk(layout), S)
    whole, next_frames = frames == S, min(frames, S - frames)
    t, u, next_u = (float(n * P * C * itemsize) for n in (S, frames, next_frames))

    D, H = config.head_dim, config.num_heads
    policies = tuple(policies or [Exact()] * config.depth)
    extra = {policy: policy.workspace(layout, D, H, itemsize=itemsize) for policy in set(policies)}
    copies = 8 if whole else 6  # whole: v is a view of qkv, so that q and k are there twice
    attending = copies * t + 4.0 * layout.tokens * H
    before = [2 * t * sum(kept < layer for kept in config.kept_layers) for layer in range(config.depth)]

    # a stage writes into its whole result from the first chunk's end: a short second chunk holds less beside it
    blocks = [t + max(10, 3 + 2 * r) * u]
    if not whole:
        blocks += [2 * t + max(10, 3 + 2 * r) * next_u]
        blocks += [2 * t + 9 * u, 5 * t + 9 * next_u, 2 * t + (2 + 2 * r) * u, 3 * t + (2 + 2 * r) * next_u]
    pixels = 4.0 * S * height * width
    heads = [_dense_head(config, layout, frames, itemsize) - 4 * pixels, 0.0]  # the points' outputs are not there yet
    heads += [] if whole else [_dense_head(config, layout, next_frames, itemsize)]
    return Memory(
        **_weights(config, itemsize),
        images=3 * pixels,
        kept=2 * t * len(config.kept_layers),
        stream=t,
        layers=tuple(b + attending + extra[policy] for b, policy in zip(before, policies, strict=True)),
        embedding=_embedding(config, layout, frames, itemsize),
        chunk=before[-1] + max(blocks),
        heads=max(heads),
        outputs=6 * pixels,
    )


@functools.lru_cache(maxsize=32)
def _parameters(config: VGGTConfig) -> tuple[int, int]:
    """Parameters of the trunk, and of the heads."""
    with torch.device("meta"):
        model = VGGT(config)
    trunk = sum(p.numel() for p in model.aggregator.parameters())
    return trunk, sum(p.numel() for p in model.parameters()) - trunk


def _weights(config: VGGTConfig, itemsize: int) -> dict[str, float]:
    trunk, heads = _parameters(config)
    return {"weights": float(itemsize * trunk + 4 * heads)}


def _embedding(config: VGGTConfig, layout: TokenLayout, frames: int, itemsize: int) -> float:
    """Patch tokens of all frames and one chunk's MLP, or the joining of the patch tokens with the specials."""
    C, patches = config.embed_dim, layout.patches_per_frame
    done = float(layout.frames * patches * C * itemsize)

    def chunk(n: int) -> float:
        pixels = n * patches * config.patch_size**2
        normalised = 3.0 * pixels * (4 + (itemsize if itemsize != 4 else 0))
        block = n * (patches + 1 + config.vit_registers) * C * itemsize * (4 + 2 * config.mlp_ratio)
        stem = pixels * C / 8 * itemsize if config.vit_stem == "conv" else 0.0  # its first GELU
        return normalised + max(block, stem)

    rest = min(frames, layout.frames - frames)
    return max(chunk(frames), done + chunk(rest) if rest else 0.0, done + layout.tokens * C * itemsize)


def _dense_head(config: VGGTConfig, layout: TokenLayout, frames: int, itemsize: int) -> float:
    """Temporaries of a dense head on one chunk: tokens in float32, feature maps, and the steps at full resolution."""
    F, patches = config.dpt_features, layout.patches_per_frame
    size = layout.grid_h * layout.grid_w * config.patch_size**2  # pixels of a frame
    tokens = 0 if itemsize == 4 else 4 * patches * 2 * config.embed_dim
    areas = [patches * scale**2 for scale in config.dpt_scales]
    maps = F * (areas[0] + areas[1] + areas[2])  # lateral maps, alive to the end
    fused = 4 * F * areas[0]  # the last fusion doubles the finest map
    half, hidden = F // 2 * size, config.dpt_hidden * size
    reassemble, before = 0.0, 0.0
    for channels, scale, area in zip(config.dpt_channels, config.dpt_scales, areas, strict=True):
        resized = channels * area if scale != 1 else 0
        made = 2 * config.embed_dim * patches + channels * patches + max(channels * patches, resized)
        reassemble = max(reassemble, before + made, before + (channels + F) * area)
        before += F * area
    steps = max(
        reassemble,
        maps + 2 * fused + F * areas[0],
        maps + fused + fused // 2 + half,
        maps + 2 * half + 2 * hidden,
    )
    position = 22.0 * half  # the grid embedding of one frame, formed in float64
    return max(4.0 * frames * (tokens + steps), 4.0 * frames * (tokens + maps + half) + position)


def fits(
    config: VGGTConfig,
    layout: TokenLayout,
    memory: float,
    policies: Sequence[Policy] | None = None,
    *,
    frames_per_chunk: int | None = None,
    itemsize: int = 4,
    held: float = 0.0,
) -> bool:
    """Whether the predicted peak is within `memory` bytes, with `held` bytes per frame beside the forward."""
    needed = peak_memory(config, layout, policies, frames_per_chunk=frames_per_chunk, itemsize=itemsize)
    return needed.peak + held * layout.frames <= memory


def frames_that_fit(
    config: VGGTConfig, layout: TokenLayout, memory: float, *, itemsize: int = 4, held: float = 0.0
) -> int:
    """The most frames of this kind whose forward, exact and one frame at a time, stays within `memory`; 0 for none.

    held: bytes per frame beside the forward.
    """
    at = {"frames_per_chunk": 1, "itemsize": itemsize, "held": held}
    return largest(lambda S: fits(config, replace(layout, frames=S), memory, **at))


def largest(holds: Callable[[int], bool], *, most: int = 2**24) -> int:
    """The largest integer n >= 1 for which holds(n), by bisection for a property that is lost once; 0 for none."""
    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def too_many(
    config: VGGTConfig,
    layout: TokenLayout,
    memory: float,
    *,
    itemsize: int = 4,
    held: float = 0.0,
    spared: float = 0.0,
) -> str:
    """Why no plan holds a scene within `memory`, how many frames would fit, and which settings would make it fit.

    held: bytes per frame beside the forward; spared: those of them that --no-dense spares.
    """
    ways = {"": (itemsize, held), "--dtype bfloat16": (2, held), "--no-dense": (itemsize, held - spared)}
    ways["--dtype bfloat16 --no-dense"] = (2, held - spared)
    ways = {way: of for i, (way, of) in enumerate(ways.items()) if of not in [*ways.values()][:i]}
    least = {size: peak_memory(config, layout, frames_per_chunk=1, itemsize=size) for size in {itemsize, 2}}
    needed = {way: least[size].peak + beside * layout.frames for way, (size, beside) in ways.items()}
    where = least[itemsize].stage + (f", with {gib(held * layout.frames)} of predictions beside it" if held else "")
    text = (
        f"{layout.frames} frames need about {gib(needed[''])} in chunks of one frame ({where}), and {gib(memory)} "
        "may be used"
    )
    enough = [way for way, count in needed.items() if count <= memory]
    if enough:
        said = (f"{way}, with which they need {gib(needed[way])}" for way in enough if way.count("--") == 1)
        return f"{text}; give {', or '.join(said) or f'{enough[0]}, with which they need {gib(needed[enough[0]])}'}"
    counts = {way: frames_that_fit(config, layout, memory, itemsize=size, held=h) for way, (size, h) in ways.items()}
    fitting = [(count, f" with {way}" if way else "") for way, count in counts.items() if count > max(1, counts[""])]
    fitting = [(counts[""], "")] * (counts[""] > 1) + fitting
    if not fitting:
        return f"{text}: not even two frames would fit; use another machine, or smaller images"
    first, *more = (f"{count}{way}" for count, way in fitting)
    others = f" ({', '.join(more)})" if more else ""
    return f"{text}; give --frames {first}, so many would fit{others}, or use a device with more memory"


def within(
    memory: float | None,
    config: VGGTConfig,
    layout: TokenLayout,
    options: Sequence[Policy],
    itemsize: int,
    held: float = 0.0,
) -> tuple[int | None, np.ndarray, str]:
    """Frames to take at once (None: the default), which options fit in which layer (layer, option), and why, in words.

    The chunk is the largest of the default's halves with which every stage but the global attention fits, and in every
    layer some option; held: bytes per frame beside the forward. AccelError where none does, with what would.
    """
    allowed, rejected = np.ones((config.depth, len(options)), dtype=bool), ""
    if memory is None:
        return None, allowed, ""
    if not fits(config, layout, memory, frames_per_chunk=1, itemsize=itemsize, held=held):
        raise AccelError(too_many(config, layout, memory, itemsize=itemsize, held=held))
    beside = held * layout.frames
    chunk = min(default_chunk(layout), layout.frames)
    while chunk:
        sizes = {"frames_per_chunk": chunk, "itemsize": itemsize}
        needed = [peak_memory(config, layout, (policy,) * config.depth, **sizes) for policy in options]
        allowed = np.array([[beside + m.weights + m.images + x <= memory for x in m.layers] for m in needed]).T
        outside = max((bytes_, stage) for stage, bytes_ in needed[0].stages.items() if stage != "global attention")
        if beside + outside[0] <= memory and allowed.any(1).all():
            few = sorted({options[j].name for j in np.flatnonzero(~allowed.all(0))})
            kept_out = f"; too large in some layers: {', '.join(few)}" if few else ""
            return chunk, allowed, f"chunks of {chunk} frames{rejected}{kept_out}"
        least = beside + max(outside[0], min(m.peak for m in needed))
        rejected = f": {chunk} would need {gib(least)} of {gib(memory)}"
        chunk //= 2
    raise AccelError(f"no option fits into {gib(memory)} in every layer; add Exact(), which does")


def allowance(
    asked: float | None,
    config: VGGTConfig,
    layout: TokenLayout,
    device: torch.device,
    *,
    dense: bool = True,
    loaded: float = 0.0,
) -> tuple[float, float, float]:
    """Bytes that a run may use at its peak, those per frame that it holds beside a forward, and of these the dense.

    The first is what was asked for, or `MARGIN` of what is free and what is `loaded` (the weights, where they are there
    already). On the CPU the accelerated prediction stays, and with `dense` the exact one and that of the validation; on
    another device predictions leave it as they are made.
    """
    memory = asked or MARGIN * (available_bytes(device) + loaded)
    outputs = peak_memory(config, layout, frames_per_chunk=1).outputs / layout.frames
    kept = outputs * (device.type == "cpu")
    spared = 2 * kept * dense
    return memory, kept + spared, spared


def available_bytes(device: torch.device) -> float:
    """Memory that can still be taken on the device, within the limits of a container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = max(free, *(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return float(free)


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
