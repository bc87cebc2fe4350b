"""Token merging (FastVGGT, arXiv 2509.02560; HTTM, arXiv 2511.21317), with masses and a first-order way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies.base import Context, Cost, Policy, attention_cost, check_flags
from accel.policies.matching import Groups, Matching, merge_workspace, restore, restore_cost, restore_workspace

METRICS = ("queries and keys", "keys", "tokens")


def check_matching(name: str, policy: Policy) -> None:
    """Validate the fields that `Merge` and `QueryMerge` share; lists become tuples."""
    if isinstance(policy.keep, bool) or not isinstance(policy.keep, int | float) or not 0 < policy.keep <= 1:
        raise AccelError(f"{name} keep={policy.keep!r} must be in (0, 1], the fraction of tokens that stay")
    for field, value in (("channels", policy.channels), ("window", policy.window)):
        if value is not None and (type(value) is not int or value < 1):
            raise AccelError(f"{name} {field}={value!r} must be an integer of at least 1, or None for all")
    cell = policy.cell
    if cell is not None and not (
        isinstance(cell, tuple | list) and len(cell) == 2 and all(type(n) is int and n >= 1 for n in cell)
    ):
        raise AccelError(f"{name} cell={cell!r} must be two integers (rows, columns) of at least 1, or None")
    if type(policy.seed) is not int or not 0 <= policy.seed < 2**63:
        raise AccelError(f"{name} seed={policy.seed!r} must be an integer from 0 to 2**63 - 1")
    check_flags(name, correct=policy.correct)
    if cell is not None:
        object.__setattr__(policy, "cell", tuple(cell))


def check_layout(policy: Policy, layout: TokenLayout) -> None:
    """AccelError where there is nothing to merge, or a cell is larger than the grid."""
    name = policy.name.replace("_", " ")
    if layout.patches_per_frame == 0:
        raise AccelError(f"{name} has no patches to merge in {layout}; use exact")
    if layout.frames == 1:
        raise AccelError(f"{name} needs at least 2 frames, {layout} has one; use exact")
    if policy.cell is not None and (policy.cell[0] > layout.grid_h or policy.cell[1] > layout.grid_w):
        rows, columns = policy.cell
        raise AccelError(
            f"{name} cell {rows}x{columns} is larger than the grid of {layout}; use a smaller one, or None"
        )


def together(x: Tensor, per_head: bool) -> list[Tensor]:
    """The features of (B, H, N, D) for `Matching`: each head's own, or those of all heads as parts of one metric."""
    return [x] if per_head else [x[:, h : h + 1] for h in range(x.shape[1])]


def merged_workspace(
    policy: Policy, layout: TokenLayout, arrays: int, attending: float, D: int, H: int, *, itemsize: int
) -> float:
    """`Policy.workspace` of a policy that merges `arrays` of q, k, v: the largest of its steps.

    They are matching, merging, attention among rows (`attending` beyond the rows and their output), and the way back.
    """
    N, M, out = layout.tokens, policy.matching.rows(layout), layout.tokens * D * H * itemsize
    features = (2 if getattr(policy, "metric", "") == "queries and keys" else 1) * D * H
    h = H if policy.matching.per_head else 1
    groups = 8.0 * h * (N + 3 * M) + 24.0 * N  # row, representative, mass and its log; destinations
    rows = arrays * M * D * H * itemsize
    result = M * D * H * itemsize
    steps = [
        policy.matching.workspace(layout, features, H, itemsize=itemsize) - out,
        groups + merge_workspace(N, M, arrays, D, H, itemsize=itemsize) - out,
        groups + rows + result + attending - out,
        groups + rows + result,
    ]
    if policy.correct:
        steps.append(groups + rows + result + restore_workspace(N, M, D, H, itemsize=itemsize))
    return max(steps)


@dataclass(frozen=True)
class Merge(Policy):
    """Similar tokens pass attention as one: q, k, v of a group are averaged, its output goes back to its members.

    The partition is `Matching`'s: destinations are the specials, frame 0 and one patch per cell; M rows, those kept
    above the destinations being the tokens that their destination represents worst (the smallest cosine), since the
    error that a merge makes is first of all the displacement of the merged query itself. With group g of n_g tokens,

        out_g = sum_h w_h exp(s q_g.k_h) v_h / sum_h w_h exp(s q_g.k_h),    w_h = n_h with `mass`, else 1,

    and each member gets out_g, or with `correct` the first-order value around it (see `matching.restore`).
    `metric`: similarity of "queries and keys" (after norm and rotation), "keys", or "tokens" (the attention module's
    input; the keys where it is unknown), on `channels` principal channels. `per_head`: a topology for each head
    (dearer: at 500 frames matching is 4.8 % of dense attention with 32 channels, under 2 % with 12).
    `reuse`: for so many layers after one that matched, its topology is taken from `context.memory`. Off by default:
    on the testbed it raises the error of a layer by some 15 to 45 %, and threefold in the last.

    Exact for keep=1, and with `mass` where the tokens of every group coincide. It errs most where attention is
    sharp. No N x N matrix: M x M attention, similarities in blocks.
    """

    keep: float = 0.35
    mass: bool = True
    correct: bool = True
    metric: str = "queries and keys"
    channels: int | None = 32
    cell: tuple[int, int] | None = None
    protect: float = 0.0
    window: int | None = None
    per_head: bool = False
    reuse: int = 0
    seed: int = 33

    name: ClassVar[str] = "merge"
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def __post_init__(self) -> None:
        check_matching("merge", self)
        check_flags("merge", mass=self.mass, per_head=self.per_head)
        if self.metric not in METRICS:
            raise AccelError(f"merge metric={self.metric!r} is not one of {list(METRICS)}")
        if self.metric == "tokens" and self.per_head:
            raise AccelError("merge with per_head=True needs a metric of each head; use 'keys' or 'queries and keys'")
        if type(self.protect) not in (int, float) or not 0 <= self.protect < 1:
            raise AccelError(f"merge protect={self.protect!r} must be in [0, 1), the fraction kept at even distances")
        if type(self.reuse) is not int or self.reuse < 0:
            raise AccelError(
                f"merge reuse={self.reuse!r} must be the number of layers that reuse a topology, 0 or more"
            )

    @classmethod
    def fastvggt(cls) -> Merge:
        """The published rule (arXiv 2509.02560): 90 % of all tokens are to be merged, which all sources together are.

        Cosine of the whole normalised input tokens with every destination; 2x2 cells with a fixed seed; every tenth
        token of the sequence protected; plain means, no mass. It differs from the public code
        in three ways: cells keep their shape on grids of odd width (there they shear, and the last row has none), a
        protected token that is a destination stands once (there it enters attention twice), and where ten does not
        divide N the stride is a little above 10 (there 10, and the last few tokens are left out).
        """
        return cls(
            keep=0.1, mass=False, correct=False, metric="tokens", channels=None, cell=(2, 2), protect=0.1
        )  # fmt: skip

    @property
    def matching(self) -> Matching:
        """How this policy partitions the tokens."""
        return Matching(
            self.keep,
            cell=self.cell,
            protect=self.protect,
            channels=self.channels,
            window=self.window,
            per_head=self.per_head,
            seed=self.seed,
        )

    def check(self, layout: TokenLayout) -> None:
        check_layout(self, layout)

    def kept_tokens(self, layout: TokenLayout) -> int:
        """M: rows of the merged sequence."""
        return self.matching.rows(layout)

    def groups(
        self,
        q: Tensor,
        k: Tensor,
        layout: TokenLayout,
        context: Context,
        match: Callable[[Matching, list[Tensor], TokenLayout], Groups] = Matching.groups,
    ) -> Groups:
        """The groups of this layer, or with `reuse` those of an earlier layer of this forward.

        match: what `accel.distributed` puts in the place of `Matching.groups`.
        """
        key = ("merge", self, layout, q.shape[:2])
        if self.reuse and key in context.memory:
            layer, groups = context.memory[key]
            if 0 <= context.layer - layer <= self.reuse:
                return groups
        if self.metric == "tokens" and context.tokens is not None:
            if context.tokens.shape[:2] != (q.shape[0], q.shape[2]):
                shapes = f"context.tokens {tuple(context.tokens.shape)} and q {tuple(q.shape)}"
                raise AccelError(f"{shapes} disagree; the tokens of a layer are (B, N, C), or None where unknown")
            features = [context.tokens.unsqueeze(1)]
        else:
            features = together(k, self.per_head)
            if self.metric == "queries and keys":
                features = together(q, self.per_head) + features
        groups = match(self.matching, features, layout)
        if self.reuse:
            context.memory[key] = (context.layer, groups)
        return groups

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        if self.kept_tokens(layout) == layout.tokens:
            return scaled_dot_product_attention(q, k, v, scale=scale)
        return self.attend_as(self.groups(q, k, layout, context), q, k, v, scale)

    def attend_as(self, groups: Groups, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """`attend` once the groups are known."""
        q_rows, k_rows, v_rows = (groups.merge(x) for x in (q, k, v))
        log_mass = groups.whole.mass.double().log() if self.mass else None

        def against_rows(some: Tensor) -> Tensor:
            return attend(some, k_rows, v_rows, log_mass=log_mass, scale=scale)[0]

        out = against_rows(q_rows)
        return restore(groups, q, q_rows, out, against_rows) if self.correct else groups.unmerge(groups.fetch(out))

    def matching_cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        """What the partition costs in a layer that matches; the input tokens are taken to have D*H channels."""
        features = (2 if self.metric == "queries and keys" else 1) * D * H
        return self.matching.cost(layout, features, H, itemsize=itemsize)

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        """As the contract; with `reuse` matching is shared out over the layers that use it."""
        N, M = layout.tokens, self.kept_tokens(layout)
        if M == N:
            return attention_cost(N, N, D, H, itemsize=itemsize)
        found = attention_cost(M, M, D, H, itemsize=itemsize)
        found += (1 / (1 + self.reuse)) * self.matching_cost(layout, D, H, itemsize=itemsize)
        found += Cost(3.0 * (N + M) * D * H, (4.0 * N + 4 * M) * D * H * itemsize)  # three means and the copy back
        return found + restore_cost(N, M, M, D, H, itemsize=itemsize) if self.correct else found

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        N, M = layout.tokens, self.kept_tokens(layout)
        if M == N:
            return 0.0
        return merged_workspace(self, layout, 3, 0.0, D, H, itemsize=itemsize)

    def keys_per_query(self, layout: TokenLayout) -> float:
        return float(self.kept_tokens(layout))

    def describe(self) -> str:
        if self == Merge.fastvggt():
            return "merge: FastVGGT's rule (2x2 cells, 10 % at even distances, no masses)"
        parts = [f"merge: {self.keep:.0%} of the tokens stay"]
        parts += ["masses"] * self.mass + ["first order"] * self.correct + ["per head"] * self.per_head
        parts += [f"topology for {1 + self.reuse} layers"] * bool(self.reuse)
        return ", ".join(parts)

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls(keep=1.0),
            cls(keep=0.6),
            cls.fastvggt(),
            cls(keep=0.5, metric="keys", cell=(2, 3), channels=4, correct=False),
            cls(keep=0.7, per_head=True, channels=8),
            cls(keep=0.6, mass=False, protect=0.1, window=2, channels=16),
        )
