"""The exchanges between ranks that sharded attention is made of, with the bytes that each rank sends counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from accel.errors import AccelError


class Ranks:
    """A process group of torch.distributed, and `sent`: the bytes that this rank has sent over it so far.

    Counted is what a ring sends: an all-gather (R - 1) times the own part, a sum 2 (R - 1) / R times the array, a turn
    of a ring the part passed on, an all-to-all all but the own share.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        if not dist.is_initialized():
            raise AccelError("torch.distributed is not initialised; start the command by torchrun")
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = 0.0

    def gather(self, x: Tensor, counts: Sequence[int], dim: int = 0) -> Tensor:
        """The parts of all ranks joined along dim in rank order; counts: their lengths there (own: counts[rank])."""
        self._check(x, counts[self.rank], dim)
        if self.size == 1:
            return x
        x = x.movedim(dim, 0).contiguous()
        longest = max(counts)
        mine = x.new_zeros((longest, *x.shape[1:]))
        mine[: len(x)] = x
        parts = [torch.empty_like(mine) for _ in counts]
        self._run(dist.all_gather, [_bytes(part) for part in parts], _bytes(mine))
        self.sent += (self.size - 1) * x.nbytes
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).movedim(0, dim)

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
            operations = [dist.P2POp(dist.isend, _bytes(x), self._peer(following), self.group) for x in parts]
            operations += [dist.P2POp(dist.irecv, _bytes(x), self._peer(before), self.group) for x in arriving]
            waiting = self._run(dist.batch_isend_irecv, operations, grouped=True)
            yield source, parts
            for work in waiting:
                self._wait(work)
            self.sent += sum(x.nbytes for x in parts)
            parts = arriving

    def exchange(self, parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Rank j gets parts[j] of every rank; like[i] is an empty tensor for what rank i sends here."""
        parts = [x.contiguous() for x in parts]
        if self.size == 1:
            return parts
        found = list(like)
        found[self.rank] = parts[self.rank]
        others = [rank for rank in range(self.size) if rank != self.rank]
        operations = [dist.P2POp(dist.isend, _bytes(parts[r]), self._peer(r), self.group) for r in others]
        operations += [dist.P2POp(dist.irecv, _bytes(found[r]), self._peer(r), self.group) for r in others]
        for work in self._run(dist.batch_isend_irecv, operations, grouped=True):
            self._wait(work)
        self.sent += sum(parts[r].nbytes for r in others)
        return found

    def _peer(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def _run(self, call: Callable, *args, grouped: bool = False):
        try:
            return call(*args) if grouped else call(*args, group=self.group)
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> AccelError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return AccelError(
            f"rank {self.rank} of {self.size} lost another rank ({reason}); the first error in the log of the other "
            f"ranks is the cause. Start the same command again"
        )

    def _check(self, x: Tensor, count: int, dim: int) -> None:
        if x.shape[dim] != count:
            raise AccelError(f"rank {self.rank} has {x.shape[dim]} rows along dim {dim} where {count} were announced")


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes: transports know fewer dtypes than torch."""
    return x.view(-1).view(torch.uint8)


def _resized(x: Tensor, dim: int, length: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = length
    return x.new_empty(shape)
