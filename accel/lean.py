"""A forward of the official VGGT that keeps only what its heads read, by the seam of `torch.cat`.

The official aggregator joins the outputs of frame block i and global block i to (B, S, P, 2C) and keeps all joins, 24
in VGGT-1B, while the heads read four: at 1041 tokens of 1024 channels per frame, 205 MB of float32 per frame instead
of 34 MB. Inside `lean` a join that no head reads is never made: the list holds None in its place, as VGGT-Omega's does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from accel.errors import AccelError
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


@contextmanager
def lean(model: nn.Module, keep: Sequence[int] | None = None) -> Iterator[tuple[int, ...]]:
    """Context manager in which an official VGGT stores only the layers its heads read; yields those layers.

    The outputs of the model are bit-identical. keep: layers instead of those (negative counts from the last), for
    heads of one's own. Composes with `patch` in either order. Models that store no more than their heads read (accel's
    VGGT, Pi3, VGGT-Omega) are left alone. AccelError: an unknown model, a layer that is not there, a nested `lean`, an
    aggregator that joins otherwise than the official one.
    """
    depth = len(sites(model))
    kept = layers_read(model) if keep is None else tuple(sorted({_layer(i, depth) for i in keep}))
    aggregator = getattr(model, "aggregator", None)
    if not hasattr(aggregator, "aa_order"):  # only the official aggregator keeps everything
        yield kept
        return
    shadowed, original = vars(aggregator).get("forward"), aggregator.forward
    if hasattr(original, "lean_layers"):
        raise AccelError(
            f"lean inside an open lean of the same model, which keeps layers {original.lean_layers}; leave that first"
        )
    channels = aggregator.camera_token.shape[-1]

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

    forward.lean_layers = kept
    aggregator.forward = forward
    try:
        yield kept
    finally:
        if shadowed is None:
            del aggregator.forward
        else:
            aggregator.forward = shadowed


def _layer(i: int, depth: int) -> int:
    if isinstance(i, bool) or not isinstance(i, int) or not -depth <= i < depth:
        raise AccelError(f"keep has layer {i!r}, the model has layers 0 to {depth - 1}")
    return i % depth
