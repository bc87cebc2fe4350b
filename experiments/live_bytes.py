"""Bytes of tensors alive at once, exactly, on any device: what `tracemalloc` does not see."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside and that some tensor still refers to; use it without gradients.

    live: bytes now. peak: the most there were. Temporaries inside one operation are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not func._schema.is_mutable:
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self.users:
            if tensor._is_view():  # of a tensor made outside
                return
            self.users[key] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
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
