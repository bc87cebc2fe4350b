"""The exchanges between ranks that sharded attention is made of, with the bytes that each rank sends counted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch import Tensor

from accel.errors import AccelError

_WORD = "accel: why a rank stopped"


class Ranks:
    """A process group of torch.distributed, and what this rank has spent on it so far.

    sent: bytes. Counted is what a ring sends: an all-gather (R - 1) times the own part, a sum 2 (R - 1) / R times the
    array, a turn of a ring the part passed on, an all-to-all all but the own share. seconds: the time in which this
    rank waited for others and did nothing else; on CUDA, where the host does not wait, only that of the calls.

    store: where ranks leave word of why they stop, for the errors of the others (None: these name what the transport
    says). doing: what an error says that the rank was at.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, store: dist.Store | None = None):
        if not dist.is_initialized():
            raise AccelError("torch.distributed is not initialised; start the command by torchrun")
        self.group, self.store = group, store
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = self.seconds = 0.0
        self.doing = ""

    def gather(self, x: Tensor, counts: Sequence[int], dim: int = 0) -> Tensor:
        """The parts of all ranks joined along dim in rank order; counts: their lengths there (own: counts[rank])."""
        self._check(x, counts[self.rank], dim)
        if self.size == 1:
            return x
        x = x.movedim(dim, 0).contiguous()
        parts = [x.new_empty((count, *x.shape[1:])) for count in counts]
        if min(counts) == max(counts):
            self._run(dist.all_gather, [_bytes(part) for part in parts], _bytes(x))
            self.sent += (self.size - 1) * x.nbytes
        else:  # an all-gather takes equal parts only
            parts = self.exchange([x] * self.size, parts)
        return torch.cat(parts).movedim(0, dim)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, on every rank."""
        if self.size == 1:
            return x
        x = x.clone(memory_format=torch.contiguous_format)
        self._run(dist.all_reduce, x)
        self.sent += 2 * (self.size - 1) / self.size * x.nbytes
        return x

    def ring(self, counts: Sequence[int], *tensors: Tensor, dim: int = 2) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """(rank, its tensors) for every rank, the own first; each turn passes parts on while the last ones are used.

        counts: the lengths along dim of every rank's tensors.
        """
        for x in tensors:
            self._check(x, counts[self.rank], dim)
        parts = tuple(x.contiguous() for x in tensors)
        following, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for turn in range(self.size):
            source = (self.rank - turn) % self.size
            if turn == self.size - 1:
                yield source, parts
                return
            arriving = tuple(_resized(x, dim, counts[(source - 1) % self.size]) for x in parts)
            operations = [
                dist.P2POp(call, _bytes(x), self._peer(peer), self.group)
                for call, tensors, peer in ((dist.isend, parts, following), (dist.irecv, arriving, before))
                for x in tensors
                if x.numel()
            ]
            waiting = self._run(dist.batch_isend_irecv, operations, grouped=True) if operations else []
            yield source, parts
            self._wait(waiting)
            self.sent += sum(x.nbytes for x in parts)
            parts = arriving

    def exchange(self, parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Rank j gets parts[j] of every rank; like[i] has the shape and dtype of what rank i sends here."""
        parts = [x.contiguous() for x in parts]
        if self.size == 1:
            return parts
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]
        found[self.rank] = parts[self.rank]
        others = [rank for rank in range(self.size) if rank != self.rank]
        operations = [
            dist.P2POp(call, _bytes(x[r]), self._peer(r), self.group)
            for call, x in ((dist.isend, parts), (dist.irecv, found))
            for r in others
            if x[r].numel()
        ]
        if operations:
            self._wait(self._run(dist.batch_isend_irecv, operations, grouped=True))
        self.sent += sum(parts[r].nbytes for r in others)
        return found

    def from_first(self, text: str) -> str:
        """The text that rank 0 has, on every rank."""
        if self.size == 1:
            return text
        mine = torch.tensor(list(text.encode() if self.rank == 0 else b""), dtype=torch.uint8, device=self.device)
        length = self.gather(torch.tensor([len(mine)], device=mine.device), [1] * self.size)[0].item()
        counts = [length] + [0] * (self.size - 1)
        return bytes(self.gather(mine, counts).tolist()).decode()

    def stop(self, reason: str) -> None:
        """Leave word that this rank stops and why; the first to do so is the one that the others name."""
        if self.store is not None:
            with suppress(RuntimeError):  # the process that keeps the store may be gone
                self.store.compare_set(_WORD, "", f"rank {self.rank} stopped: {reason}")

    def _peer(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    @property
    def device(self) -> torch.device:
        """Where tensors must lie to be sent."""
        on_gpu = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def _run(self, call: Callable, *args, grouped: bool = False):
        with self._watched():
            return call(*args) if grouped else call(*args, group=self.group)

    def _wait(self, works: Sequence[dist.Work]) -> None:
        with self._watched():
            for work in works:
                work.wait()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Count the seconds, and say what happened when a transport fails: AccelError."""
        start = time.perf_counter()
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise AccelError(self._lost(reason(error))) from error
        finally:
            self.seconds += time.perf_counter() - start

    def _lost(self, why: str) -> str:
        if self.store is not None:
            with suppress(RuntimeError):
                if self.store.check([_WORD]):
                    why = self.store.get(_WORD).decode()
        at = f" in {self.doing}" if self.doing else ""
        return f"rank {self.rank} of {self.size} lost another rank{at} ({why}); start the same command again"

    def _check(self, x: Tensor, count: int, dim: int) -> None:
        if x.shape[dim] != count:
            raise AccelError(f"rank {self.rank} has {x.shape[dim]} rows along dim {dim} where {count} were announced")


def reason(error: BaseException) -> str:
    """What a transport's error says, without the place in its sources and its advice."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[\S*\] ", "", first).split(". ")[0]


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes: transports know fewer dtypes than torch."""
    return x.view(-1).view(torch.uint8)


def _resized(x: Tensor, dim: int, length: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = length
    return x.new_empty(shape)
