"""A forward of the official models in less memory: only what heads read is kept, and MLPs take a few frames at once.

The official aggregator joins the outputs of frame block i and global block i to (B, S, P, 2C) and keeps all joins, 24
in VGGT-1B, while the heads read four: at 1041 tokens of 1024 channels per frame, 205 MB of float32 per frame instead
of 34 MB. Inside `lean` a join that no head reads is never made: the list holds None in its place, as VGGT-Omega's does.

With `frames_per_chunk` every MLP of a block, here and in Pi3 and VGGT-Omega, and the official aggregator's frame blocks
run over so many frames at a time, by forwards put on the instances (as `accel.patch` does, and for its reasons): an MLP
holds eight token arrays in its hidden layer and activation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from accel.errors import AccelError
from accel.models.layers import in_chunks
from accel.sites import sites


def layers_read(model: nn.Module) -> tuple[int, ...]:
    """The layers that the heads of an official VGGT read: every `intermediate_layer_idx`, and the last (camera)."""
    depth = len(sites(model))
    read = {depth - 1}
    for module in model.modules():
        read |= {int(i) % depth for i in getattr(module, "intermediate_layer_idx", ())}
    return tuple(sorted(read))


class _Joins(TorchFunctionMode):
    """Counts the joins of a forward and skips those of layers that are not kept."""

    def __init__(self, keep: frozenset[int], channels: int):
        super().__init__()
        self.keep, self.channels, self.seen = keep, channels, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.cat and self._is_join(*args, **kwargs):
            self.seen += 1
            if self.seen - 1 not in self.keep:
                return None
        return func(*args, **kwargs)

    def _is_join(self, tensors: Sequence[Tensor] = (), dim: int = 0, **other: object) -> bool:
        """Two (B, S, P, C) along the channels: inside the blocks nothing with four dimensions has C channels."""
        if dim != -1 or len(tensors) != 2:
            return False
        a, b = tensors
        return a.ndim == 4 and a.shape == b.shape and a.shape[-1] == self.channels


class _Chunks:
    """Forwards over a few frames at a time; tokens: of one frame, the fewest seen in a batch of sequences."""

    def __init__(self, frames: int):
        self.frames, self.tokens = frames, None

    def see(self, tokens: int) -> None:
        self.tokens = min(tokens, self.tokens or tokens)

    def mlp(self, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same on x (..., C), which it treats row by row."""

        def forward(x: Tensor) -> Tensor:
            if x.ndim == 3 and x.shape[0] > 1:
                self.see(x.shape[1])
            if self.tokens is None:
                return original(x)
            rows = in_chunks(original, (x.flatten(0, -2),), self.frames * self.tokens, dim=0)
            return rows.unflatten(0, x.shape[:-1])

        return forward

    def frame_block(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same on x (frames, P, C), and on what else comes frame by frame (the positions)."""

        def forward(x: Tensor, *args, **kwargs) -> Tensor:
            self.see(x.shape[1])  # here, since one frame at a time does not look like a batch of sequences
            given = [*args, *kwargs.values()]
            cut = [i for i, y in enumerate(given) if isinstance(y, Tensor) and y.shape[:1] == x.shape[:1]]

            def part(x: Tensor, *some: Tensor) -> Tensor:
                all_ = given.copy()
                for i, y in zip(cut, some, strict=True):
                    all_[i] = y
                return original(x, *all_[: len(args)], **dict(zip(kwargs, all_[len(args) :], strict=True)))

            return in_chunks(part, (x, *(given[i] for i in cut)), self.frames, dim=0)

        return forward


@contextmanager
def _standing_in(module: nn.Module, forward: Callable) -> Iterator[None]:
    """`forward` in the place of the module's own; afterwards what was there before."""
    shadowed = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if shadowed is None:
            del module.forward
        else:
            module.forward = shadowed


@contextmanager
def lean(
    model: nn.Module, keep: Sequence[int] | None = None, *, frames_per_chunk: int | None = None
) -> Iterator[tuple[int, ...]]:
    """Context manager in which an official VGGT stores only the layers its heads read; yields those layers.

    The outputs of the model are bit-identical. keep: layers instead of those (negative counts from the last), for
    heads of one's own. Composes with `patch` in either order. Models that store no more than their heads read (accel's
    VGGT, Pi3, VGGT-Omega) keep what they keep. frames_per_chunk: frames that the MLPs of any known model take at once
    (accel's VGGT has `model.frames_per_chunk` instead and is left alone), and the frame blocks of the official
    aggregator; outputs are then equal to rounding. AccelError: an unknown model, a layer that is not there, a nested
    `lean`, an aggregator that joins otherwise than the official one, a chunk below one frame.
    """
    depth = len(sites(model))
    kept = layers_read(model) if keep is None else tuple(sorted({_layer(i, depth) for i in keep}))
    if frames_per_chunk is not None and (type(frames_per_chunk) is not int or frames_per_chunk < 1):
        raise AccelError(f"frames_per_chunk={frames_per_chunk!r} must be an integer of at least 1, or None for all")
    aggregator = getattr(model, "aggregator", None)
    official = hasattr(aggregator, "aa_order")  # only the official aggregator keeps everything
    outer = vars(model).get("lean_layers")
    if outer is not None:
        raise AccelError(f"lean inside an open lean of the same model, which keeps layers {outer}; leave that first")
    with ExitStack() as stack:
        model.lean_layers = kept
        stack.callback(delattr, model, "lean_layers")
        if official:
            stack.enter_context(_standing_in(aggregator, _keeping(model, aggregator, kept, depth)))
        if frames_per_chunk is not None and not hasattr(model, "frames_per_chunk"):
            chunks = _Chunks(frames_per_chunk)
            blocks = [
                m for m in model.modules() if hasattr(m, "attn") and isinstance(getattr(m, "mlp", None), nn.Module)
            ]
            for block in blocks:
                stack.enter_context(_standing_in(block.mlp, chunks.mlp(block.mlp.forward)))
            for block in aggregator.frame_blocks if official else ():
                stack.enter_context(_standing_in(block, chunks.frame_block(block.forward)))
        yield kept


def _keeping(model: nn.Module, aggregator: nn.Module, kept: tuple[int, ...], depth: int) -> Callable:
    """The aggregator's forward without the joins of layers that are not kept."""
    original, channels = aggregator.forward, aggregator.camera_token.shape[-1]

    def forward(*args, **kwargs):
        joins = _Joins(frozenset(kept), channels)
        with joins:
            result = original(*args, **kwargs)
        if joins.seen != depth:
            raise AccelError(
                f"the aggregator of {type(model).__qualname__} joined {joins.seen} pairs of outputs for {depth} "
                f"layers; this is not the official forward, use it without lean"
            )
        return result

    return forward


def _layer(i: int, depth: int) -> int:
    if isinstance(i, bool) or not isinstance(i, int) or not -depth <= i < depth:
        raise AccelError(f"keep has layer {i!r}, the model has layers 0 to {depth - 1}")
    return i % depth
