"""Query merging: every key stays, similar queries share one output (Spark3R, arXiv 2605.06270)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend
from accel.layout import TokenLayout
from accel.policies.base import Context, Cost, Policy, attention_cost
from accel.policies.matching import Groups, Matching, restore, restore_cost
from accel.policies.merge import check_layout, check_matching, merged_workspace, together


@dataclass(frozen=True)
class QueryMerge(Policy):
    """Queries of a group are averaged, attend to all keys, and each member gets the output, corrected or copied.

        out_g = sum_j exp(s q_g.k_j) v_j / sum_j exp(s q_g.k_j),    q_g the mean of the queries of group g

    Groups are `Matching`'s, by the cosine of the queries of all heads (`channels` principal channels of them); the
    specials, one patch per cell and the queries farthest from their destination keep a row, `keep` N in all. With
    `correct` a member's output is that of its group to first order in q_i - q_g (`matching.restore`), else a copy.
    `window`: queries of the same window of so many frames are matched (None: of all).

    Keys and values are exact, so each row is an exact output at some query; exact for keep=1, and where the queries of
    each group coincide. M x N attention: it saves less than `Merge` at the same `keep`, and errs less.
    """

    keep: float = 0.35
    correct: bool = True
    channels: int | None = 32
    cell: tuple[int, int] | None = None
    window: int | None = None
    seed: int = 33

    name: ClassVar[str] = "query_merge"
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def __post_init__(self) -> None:
        check_matching("query merge", self)

    @classmethod
    def spark3r(cls, frames: int) -> QueryMerge:
        """The published setting: queries reduced 1, 2, 3, 4 times up to 100, 300, 500, and above 500 frames.

        Merged inside windows of 20 frames, copied back, full queries compared. How the paper chooses representatives
        is not public; here they are this module's.
        """
        factor = 1 + sum(frames > limit for limit in (100, 300, 500))
        return cls(keep=1 / factor, correct=False, channels=None, window=20)

    @property
    def matching(self) -> Matching:
        """How this policy partitions the queries; frame 0 is merged as the others are."""
        return Matching(
            self.keep,
            cell=self.cell,
            first_frame=False,
            channels=self.channels,
            window=self.window,
            seed=self.seed,
        )

    def check(self, layout: TokenLayout) -> None:
        check_layout(self, layout)

    def kept_queries(self, layout: TokenLayout) -> int:
        """M: rows that attend."""
        return self.matching.rows(layout)

    def groups(
        self,
        q: Tensor,
        layout: TokenLayout,
        match: Callable[[Matching, list[Tensor], TokenLayout], Groups] = Matching.groups,
    ) -> Groups:
        """The groups of queries; match: what `accel.distributed` puts in the place of `Matching.groups`."""
        return match(self.matching, together(q, False), layout)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        if self.kept_queries(layout) == layout.tokens:
            return scaled_dot_product_attention(q, k, v, scale=scale)
        return self.attend_as(self.groups(q, layout), q, k, v, scale)

    def attend_as(self, groups: Groups, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """`attend` once the groups are known; k and v of the heads whose rows are at hand."""
        rows = groups.merge(q)

        def against_all(some: Tensor) -> Tensor:
            return attend(some, k, v, scale=scale)[0]

        out = against_all(rows)
        return restore(groups, q, rows, out, against_all) if self.correct else groups.unmerge(groups.fetch(out))

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        N, M = layout.tokens, self.kept_queries(layout)
        if M == N:
            return attention_cost(N, N, D, H, itemsize=itemsize)
        found = attention_cost(M, N, D, H, itemsize=itemsize) + self.matching.cost(layout, D * H, H, itemsize=itemsize)
        found += Cost(float(N + M) * D * H, 2.0 * (N + M) * D * H * itemsize)  # the mean and the copy back
        return found + restore_cost(N, M, N, D, H, itemsize=itemsize) if self.correct else found

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        if self.kept_queries(layout) == layout.tokens:
            return 0.0
        return merged_workspace(self, layout, 1, 0.0, D, H, itemsize=itemsize)

    def keys_per_query(self, layout: TokenLayout) -> float:
        """All N keys enter every softmax; what is spared are queries."""
        return float(layout.tokens)

    def describe(self) -> str:
        where = "" if self.window is None else f" in windows of {self.window} frames"
        return f"query merge: {self.keep:.0%} of the queries stay{where}" + ", first order" * self.correct

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls(keep=1.0),
            cls(keep=0.5),
            cls.spark3r(200),
            cls(keep=0.6, correct=False, cell=(2, 3), channels=8, window=2),
        )
