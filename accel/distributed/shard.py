"""Which frames, and so which tokens, belong to which rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

from accel.errors import AccelError
from accel.layout import TokenLayout


def shares(frames: int, size: int) -> tuple[int, ...]:
    """Frames of each of `size` ranks; AccelError for more ranks than frames."""
    if size > frames:
        raise AccelError(f"{frames} frames cannot be shared out over {size} ranks; start at most {frames} ranks")
    each, more = divmod(frames, size)
    return tuple(each + (rank < more) for rank in range(size))


@dataclass(frozen=True)
class Shard:
    """The part of a scene that one rank holds: consecutive frames, as many on every rank as can be, the first ranks one
    more where they do not divide. `layout` is the whole scene's."""

    layout: TokenLayout
    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise AccelError(f"rank {self.rank} is not one of {self.size} ranks")
        shares(self.layout.frames, self.size)

    @property
    def frames(self) -> tuple[int, ...]:
        """Frames of each rank."""
        return shares(self.layout.frames, self.size)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each rank."""
        return tuple(n * self.layout.tokens_per_frame for n in self.frames)

    @property
    def first(self) -> int:
        """The first frame of this rank."""
        return sum(self.frames[: self.rank])

    @property
    def local(self) -> TokenLayout:
        """The layout of this rank's frames."""
        return replace(self.layout, frames=self.frames[self.rank])

    @property
    def starts(self) -> tuple[int, ...]:
        """The first token of each rank, and N."""
        return (0, *accumulate(self.tokens))

    @property
    def own(self) -> slice:
        """This rank's tokens in the sequence of the whole scene."""
        return slice(self.starts[self.rank], self.starts[self.rank + 1])
