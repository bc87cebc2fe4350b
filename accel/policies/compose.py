"""Two policies in one layer: merge tokens or queries, then attend to a subset of the keys that are left.

RegimeVGGT (arXiv 2606.18439) thins merged tokens on a moving grid; Spark3R (arXiv 2605.06270) merges queries and
strides over the frames of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import shorten
from typing import ClassVar, Literal

import torch
from torch import Tensor

from accel.attend import attend
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies.base import Context, Cost, Policy, attention_cost
from accel.policies.key_subset import KeySubset, Selection
from accel.policies.matching import Groups, restore
from accel.policies.merge import Merge, merged_workspace
from accel.policies.phased_grid import PhasedGrid
from accel.policies.query_merge import QueryMerge
from accel.policies.subsample import Subsample
from accel.policies.temporal_stride import TemporalStride


@dataclass(frozen=True)
class Compose(Policy):
    """`policies` = (Merge or QueryMerge, a KeySubset: Subsample, TemporalStride or PhasedGrid).

    Merge first: row g is the mean of the n_g tokens of a group and has weight w_g = n_g (1 where the merge is without
    `mass`). Rows whose representative token the subset keeps are kept; a dropped row is stood for by the row of its
    representative's stand-in, or where that is dropped too, by the kept row that precedes it in the token order (the
    first kept row, for those before it), and with fill "mass" its weight goes there. Queries are the rows, each with
    its own key as the subset has it; tokens get their row's output back as the merge has it (to first order: the step
    is fitted against all rows). QueryMerge first: the merged queries attend to the kept keys; they have no own key.

    Exact where both are; with masses, where groups and windows each hold one token many times. AccelError for other
    policies, another order, and what either refuses.
    """

    policies: tuple[Policy, ...] = (Merge(), Subsample(stride=4, fill="mass"))

    name: ClassVar[str] = "compose"
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def __post_init__(self) -> None:
        if isinstance(self.policies, list):
            object.__setattr__(self, "policies", tuple(self.policies))
        policies = self.policies
        if (
            not isinstance(policies, tuple)
            or len(policies) != 2
            or not isinstance(policies[0], Merge | QueryMerge)
            or not isinstance(policies[1], KeySubset)
        ):
            names = [getattr(p, "name", p) for p in policies] if isinstance(policies, tuple) else policies
            raise AccelError(
                f"compose cannot hold {names}; give two policies: merge or query_merge, then one that keeps a subset "
                "of the keys (subsample, temporal_stride, phased_grid)"
            )
        if isinstance(policies[1].shrinkage, tuple) and getattr(policies[0], "per_head", False):
            raise AccelError("compose cannot hold a merge per head and a shrinkage per head; give one shrinkage")

    @classmethod
    def spark3r(cls, frames: int) -> Compose:
        """The published setting: merged queries, strided keys."""
        return cls((QueryMerge.spark3r(frames), TemporalStride.spark3r(frames)))

    def check(self, layout: TokenLayout) -> None:
        for policy in self.policies:
            policy.check(layout)

    def only(self, layout: TokenLayout) -> Policy | None:
        """The one of the two that changes anything, where the other spends the whole budget."""
        first, second = self.policies
        if first.matching.rows(layout) == layout.tokens:
            return second
        return first if second.kept_keys(layout) == layout.tokens else None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        only = self.only(layout)
        if only is not None:
            return only._attend(q, k, v, layout, scale, context)
        first, subset = self.policies
        on_keys = isinstance(first, Merge)
        groups = first.groups(q, k, layout, context) if on_keys else first.groups(q, layout)
        return self.attend_as(groups, subset.selection(layout, q.device, context), q, k, v, scale)

    def attend_as(self, groups: Groups, tokens: Selection, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """`attend` once the groups, and what the subset keeps of the tokens, are known; k and v of a QueryMerge are
        those of the heads whose rows are at hand."""
        first, subset = self.policies
        rows, log_mass = groups.merge(q), None
        if isinstance(first, Merge):
            k, v = groups.merge(k), groups.merge(v)
            log_mass = groups.whole.mass.double().log() if first.mass else None
            out = self._thinned(groups.whole, tokens, rows, k, v, scale)
        else:
            out = subset.attend_to(rows, k, v, tokens, scale, own_key=False)
        if not first.correct:
            return groups.unmerge(groups.fetch(out))
        return restore(groups, q, rows, out, lambda some: attend(some, k, v, log_mass=log_mass, scale=scale)[0])

    def _thinned(self, groups: Groups, tokens: Selection, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Outputs of the merged rows q, k, v against those that the subset keeps of them."""
        merge, subset = self.policies
        out = torch.empty_like(q)
        one_batch, one_head = (size == 1 for size in groups.row.shape[:2])
        for b in range(groups.row.shape[0]):  # each topology keeps rows of its own
            for h in range(groups.row.shape[1]):
                part = slice(None) if one_batch else slice(b, b + 1), slice(None) if one_head else slice(h, h + 1)
                chosen, weight = select_rows(tokens, groups.row[b, h], groups.representative[b, h], merge.mass)
                some = (x[part] for x in (q, k, v))
                out[part] = subset.attend_to(*some, chosen, scale, own_key=subset.own_key, weight=weight)
        return out

    def _kept_rows(self, layout: TokenLayout) -> float:
        """Expected kept rows after a `Merge`: its fixed rows are known, of the others a fair share is kept."""
        merge, subset = self.policies
        fixed, dropped = merge.matching.kept(layout), subset.select(layout).dropped
        others = max(1, int((~fixed).sum()))
        share = int((~fixed & ~dropped).sum()) / others
        return int((fixed & ~dropped).sum()) + (merge.kept_tokens(layout) - int(fixed.sum())) * share

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        """As the contract: the merge with its attention replaced by that of the subset."""
        only = self.only(layout)
        if only is not None:
            return only.cost(layout, D, H, itemsize=itemsize)
        first, second = self.policies
        rows, N = first.matching.rows(layout), layout.tokens
        if isinstance(first, Merge):
            keys, kept = rows, self._kept_rows(layout)
        else:
            keys, kept = N, second.kept_keys(layout)
        whole = attention_cost(rows, keys, D, H, itemsize=itemsize)
        part = second.attend_to_cost(rows, keys, kept, D, H, itemsize=itemsize)
        return first.cost(layout, D, H, itemsize=itemsize) + -1.0 * whole + part

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        """That of the merge, with the subset's in place of plain attention."""
        only = self.only(layout)
        if only is not None:
            return only.workspace(layout, D, H, itemsize=itemsize)
        first, second = self.policies
        rows = first.matching.rows(layout)
        merged = isinstance(first, Merge)
        attending = second.attend_to_workspace(
            rows,
            self._kept_rows(layout) if merged else second.kept_keys(layout),
            D,
            H,
            itemsize=itemsize,
            own_key=merged and second.own_key,
            weighted=merged and first.mass,
        )
        attending += merged * rows * D * H * itemsize + 40.0 * layout.tokens  # each topology's part is copied in
        return merged_workspace(first, layout, 3 if merged else 1, attending, D, H, itemsize=itemsize)

    def keys_per_query(self, layout: TokenLayout) -> float:
        only = self.only(layout)
        if only is not None:
            return only.keys_per_query(layout)
        first, second = self.policies
        if isinstance(first, QueryMerge):
            return second.kept_keys(layout) + float(second.fill in ("published", "count"))
        rows, kept = first.kept_tokens(layout), self._kept_rows(layout)
        return kept + second.own_key * (rows - kept) / rows + (second.fill in ("published", "count"))

    def describe(self) -> str:
        return shorten("; ".join(policy.describe() for policy in self.policies), 100, placeholder=" ...")

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls((Merge(keep=1.0), Subsample(stride=1))),
            cls((Merge(keep=0.6, correct=False), Subsample(stride=4, fill="mass"))),
            cls((Merge(keep=0.7, correct=False, per_head=True, channels=8), PhasedGrid(2, 1, fill="count"))),
            cls((Merge.fastvggt(), PhasedGrid.regime(1.5))),
            cls((Merge(keep=0.6), TemporalStride(2, fill="shrink"))),
            cls((QueryMerge(keep=0.5, correct=False), TemporalStride(2, own_key=False))),
            cls((QueryMerge(keep=0.6), Subsample(stride=4, fill="published"))),
        )


def select_rows(tokens: Selection, row: Tensor, representative: Tensor, mass: bool) -> tuple[Selection, Tensor | None]:
    """The subset's selection of the rows of one topology, and the tokens in each row (None: one each)."""
    count = len(representative)
    index = torch.arange(count, device=row.device)
    dropped = tokens.dropped[representative]
    kept = index[~dropped]
    stand_in = torch.where(dropped, row[tokens.stand_in[representative]], index)
    before = kept[(torch.searchsorted(kept, index, right=True) - 1).clamp_min(0)]
    stand_in = torch.where(dropped[stand_in], before, stand_in)
    weight = torch.bincount(row, minlength=count) if mass else None
    total = torch.bincount(stand_in, minlength=count, weights=None if weight is None else weight.double())
    return Selection(kept, total[kept], stand_in, dropped), weight
