"""Bytes of tensors alive at once, exactly, on any device: what `tracemalloc` does not see.

Under torch's FakeTensorMode the same program is counted without being run: tensors have sizes and no content, so that
a forward of 1,000 frames is counted on a laptop.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from accel.layout import TokenLayout
from accel.models import VGGT, VGGTConfig


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside and that some tensor still refers to; use it without gradients.

    live: bytes now. peak: the most there were. largest: the largest single one. Temporaries inside one operation are
    not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.live = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not func._schema.is_mutable:
                self._count(tensor, args, kwargs)
        return out

    def _count(self, tensor: torch.Tensor, *arguments: object) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # not data_ptr: that of a fake tensor is 0
        if key not in self.users:
            if any(isinstance(x, torch.Tensor) and x.untyped_storage()._cdata == key for x in tree_leaves(arguments)):
                return  # a view of a tensor made outside
            self.users[key] = 0
            self.live += size
            self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        self.users[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.live -= size


def peak_bytes(fn: Callable, *args) -> int:
    """The most bytes alive at once among those that fn(*args) makes."""
    with torch.no_grad(), LiveBytes() as counted:
        fn(*args)
    return counted.peak


def count_forward(
    config: VGGTConfig,
    layout: TokenLayout,
    *,
    frames_per_chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
    fake: bool = True,
    forward: Callable[[VGGT, torch.Tensor], object] | None = None,
) -> dict[str, int]:
    """Bytes of an exact forward of VGGT(config): weights, images, the peak of all.

    fake: count without running it (slow for many small operations). dtype is that of the trunk. forward(model, images)
    replaces the model's own. largest: the largest tensor made.
    """
    height, width = (n * config.patch_size for n in (layout.grid_h, layout.grid_w))
    with torch.no_grad(), FakeTensorMode() if fake else nullcontext():
        model = VGGT(config, frames_per_chunk)
        for module in model.aggregator.modules():  # Module.to would swap tensors that fake mode refers to
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(weight.to(dtype), requires_grad=False)
        images = torch.zeros(1, layout.frames, 3, height, width)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        with LiveBytes() as counted:
            model(images) if forward is None else forward(model, images)
    held = weights + images.numel() * images.element_size()
    return {"weights": weights, "images": held - weights, "peak": held + counted.peak, "largest": counted.largest}
