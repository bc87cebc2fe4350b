"""Attention against a fixed subset of the keys, and ways to stand for the dropped ones: what such policies share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend, combine
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import base
from accel.policies.base import Context, Cost, Policy, attention_cost, block_bytes, check_flags

FILLS = ("none", "published", "count", "mass", "shrink")

_EXTRA = {"none": (0, 0), "published": (12, 2), "count": (12, 2), "mass": (6, 4), "shrink": (10, 7)}
"""What a fill adds per element of an (N, D) array of each head: operations, and elements read or written."""
_TEMPORARIES = {(True, True): 7, (True, False): 4, (False, True): 3}
"""Arrays of a block of queries that `attend_to` holds at once with own keys, with something for the rest."""


class Selection(NamedTuple):
    """Which keys are kept and what stands for the others."""

    kept: Tensor  # (M,) token indices of the kept keys, ascending
    mass: Tensor  # (M,) how many tokens each stands for, itself included
    stand_in: Tensor  # (N,) the kept token that stands for each token; itself if kept
    dropped: Tensor  # (N,) bool


class Rows:
    """Which of the N rows of keys and values are at hand: here all. `accel.distributed` has a part on each rank.

    `KeySubset.attend_to` asks it for what involves the others, so that its formulas are written once.
    """

    first: int = 0
    """The place of the first row at hand among all N; the others follow."""

    def kept(self, chosen: Selection, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of k and v that are kept, of all N."""
        return k.index_select(2, chosen.kept), v.index_select(2, chosen.kept)

    def total(self, x: Tensor) -> Tensor:
        """The sum over all rows of what x is the sum of over those at hand."""
        return x

    def probe(self, count: int, q: Tensor, k: Tensor, v: Tensor, log_mass: Tensor | None, scale: float):
        """Of `count` queries spread over all, those at hand: their indices in q, and attention to all rows."""
        index = spread(q.shape[2], count).to(q.device)
        return index, attend(q.index_select(2, index), k, v, log_mass=log_mass, scale=scale)[0]


@dataclass(frozen=True)
class KeySubset(Policy):
    """Every query sees the same kept keys S; a subclass says which by `stand_in` and `kept_keys`.

    With S the kept keys, R the n dropped ones and l_ij = scale q_i.k_j, the measure a query i averages against is
    S and its own key (once: nothing is added when i is in S), and for the rest, by `fill`:

    * "none": nothing.
    * "published": one key (mean of k over R, mean of v over R) of weight one, as AVGGT describes it; their supplement
      was not at hand. For i in R the mean leaves i out, whose own key is there already (exactly; O(N D)).
    * "count": the same mean key with the weight of the n keys it stands for, n - 1 for i in R.
    * "mass": no extra key; each kept token has the weight of the tokens it stands for, itself included. For i in R its
      stand-in weighs one less, since i speaks for itself. Exact where tokens and their stand-ins coincide.
    * "shrink": out = lam o + (1 - lam) vbar, with o of "mass" and vbar the mean of all v. lam is `shrinkage` (one
      number, or one per head), or else the least-squares value per batch and head,
      sum <o_i - vbar, o*_i - vbar> / sum |o_i - vbar|^2 in [0, 1], over a fixed low-discrepancy subset of min(1024,
      |S|/16) queries whose exact outputs o* are computed: about 1/16 more operations. When the errors o - o* are
      uncorrelated with o* it is the optimum B^2/(B^2 + MSE), and it also counts the bias.

    Where `own_key` is false, no query gets its own key: S and what stands for the rest, for every query alike.
    No N x N matrix: N x |S| fused attention plus O(N D). Exact where all keys are kept.
    """

    fill: str = field(default="none", kw_only=True)
    shrinkage: float | tuple[float, ...] | None = field(default=None, kw_only=True)

    own_key: ClassVar[bool] = True
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def __post_init__(self) -> None:
        check_flags(self.name, own_key=self.own_key)
        if self.fill not in FILLS:
            raise AccelError(f"fill={self.fill!r} is not one of {list(FILLS)}")
        if isinstance(self.shrinkage, list):
            object.__setattr__(self, "shrinkage", tuple(self.shrinkage))
        if self.shrinkage is not None:
            values = self.shrinkage if isinstance(self.shrinkage, tuple) else (self.shrinkage,)
            if (
                self.fill != "shrink"
                or not values
                or not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1 for x in values)
            ):
                raise AccelError(f'shrinkage={self.shrinkage!r} needs fill="shrink" and values in [0, 1]')

    def check_heads(self, H: int) -> None:
        """AccelError unless there is one shrinkage for each of H heads, or one for all."""
        if isinstance(self.shrinkage, tuple) and len(self.shrinkage) != H:
            raise AccelError(f"shrinkage has {len(self.shrinkage)} values for {H} heads; give one per head")

    def check(self, layout: TokenLayout) -> None:
        if layout.patches_per_frame == 0:
            raise AccelError(f"{self.name} has no patches to drop in {layout}; use exact")
        if layout.frames == 1:
            raise AccelError(f"{self.name} needs at least 2 frames, {layout} has one; use exact")

    @abstractmethod
    def stand_in(self, layout: TokenLayout, *, device: torch.device | str | None = None) -> Tensor:
        """The kept token that stands for each token, itself if kept: LongTensor (N,)."""

    @abstractmethod
    def kept_keys(self, layout: TokenLayout) -> int:
        """M = |S|, without forming anything of size N."""

    def select(self, layout: TokenLayout, *, device: torch.device | str | None = None) -> Selection:
        """Which keys are kept, what each stands for, and which kept key stands for each token; O(N)."""
        stand_in = self.stand_in(layout, device=device)
        tokens = torch.arange(layout.tokens, device=device)
        dropped = stand_in != tokens
        kept = tokens[~dropped]
        mass = torch.bincount(stand_in, minlength=layout.tokens)[kept]
        return Selection(kept, mass, stand_in, dropped)

    def selection(self, layout: TokenLayout, device: torch.device, context: Context) -> Selection:
        """`select`, made once for the layers of one forward."""
        key = self, layout, device
        if key not in context.memory:
            context.memory[key] = self.select(layout, device=device)
        return context.memory[key]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        chosen = self.selection(layout, q.device, context)
        if len(chosen.kept) == layout.tokens:
            return scaled_dot_product_attention(q, k, v, scale=scale)
        return self.attend_to(q, k, v, chosen, scale, own_key=self.own_key)

    def attend_to(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        chosen: Selection,
        scale: float,
        *,
        own_key: bool,
        weight: Tensor | None = None,
        rows: Rows | None = None,
    ) -> Tensor:
        """Attention of q (B, H, Nq, D) against the policy's measure on the rows k, v (B, H, Nk, D), Nk = |stand_in|.

        own_key: row i is the key of query i. weight (Nk,): the tokens that each row stands for already, in which case
        chosen.mass counts them too; None is one each. rows: where k and v are only some of the Nk rows; `chosen` and
        `weight` are about all of them.
        """
        self.check_heads(q.shape[1])
        rows = Rows() if rows is None else rows
        moved = self.fill in ("mass", "shrink")
        mass = chosen.mass if moved else None if weight is None else weight[chosen.kept]
        near = rows.kept(chosen, k, v)
        if moved and own_key and weight is not None:  # a light stand-in gives a heavy row back: a large difference
            near = tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in near)
        log_mass = None if mass is None else mass.double().log()
        out, lse = attend(q.to(near[0].dtype), *near, log_mass=log_mass, scale=scale)
        means = None
        if self.fill in ("published", "count") and len(chosen.kept) < len(chosen.dropped):
            means = _means(rows, chosen.dropped if weight is None else weight * chosen.dropped, k, v)
        add_rest = self._add_own_and_mean if own_key else self._add_mean
        if own_key or means is not None:
            out = _join(
                [add_rest(q, k, v, near, out, lse, chosen, means, scale, weight, rows, block) for block in _blocks(q)]
            )
        return self._shrink(q, k, v, out, chosen, scale, weight, rows) if self.fill == "shrink" else out

    def _add_own_and_mean(self, q, k, v, near, out, lse, chosen, means, scale, weight, rows, block) -> Tensor:
        """Attention against S -> with the query's own key and the mean key, for one block of queries; O(N D)."""
        here = slice(rows.first + block.start, rows.first + block.stop)
        dtype, drop = lse.dtype, chosen.dropped[here]
        q_i, k_i, v_i, out = (x[:, :, block].to(dtype) for x in (q, k, v, out))
        lse = lse[:, :, block]
        own = scale * (q_i * k_i).sum(-1)
        log_weight = 0 if weight is None else weight[here].to(dtype).log()
        if self.fill in ("mass", "shrink"):  # the stand-in gives up the tokens that now speak for themselves
            index = torch.searchsorted(chosen.kept, chosen.stand_in[here])
            k_j, v_j = (x.index_select(2, index).to(dtype) for x in near)
            share = torch.exp(scale * (q_i * k_j).sum(-1) + log_weight - lse).where(drop, 0)  # below 1: S keeps its own
            out = (out - share.unsqueeze(-1) * v_j) / (1 - share).unsqueeze(-1)
            lse = lse + torch.log1p(-share)
        rest = None
        if means is not None:
            k_mean, v_mean = means
            n, held = _tokens(chosen, weight), drop.to(dtype) if weight is None else drop * weight[here].to(dtype)
            others = (n - held).clamp_min(1)
            logit = (n * scale * (q_i @ k_mean.transpose(-1, -2)).squeeze(-1) - held * own) / others
            if self.fill == "count":
                logit = logit + others.log()
            logit = logit.where(n > held, -torch.inf)
            rest = (n * v_mean - v_i * held.unsqueeze(-1)) / others.unsqueeze(-1), logit
        out, lse = combine(out, lse, v_i, (own + log_weight).where(drop, -torch.inf))
        if rest is not None:
            out, lse = combine(out, lse, *rest)
        return out.to(q.dtype)

    def _add_mean(self, q, k, v, near, out, lse, chosen, means, scale, weight, rows, block) -> Tensor:
        """As `_add_own_and_mean` without the own key."""
        k_mean, v_mean = means
        logit = scale * (q[:, :, block].to(lse.dtype) @ k_mean.transpose(-1, -2)).squeeze(-1)
        if self.fill == "count":
            logit = logit + math.log(_tokens(chosen, weight))
        out = out[:, :, block].to(lse.dtype)
        return combine(out, lse[:, :, block], v_mean, logit)[0].to(q.dtype)

    def _shrink(self, q, k, v, out, chosen: Selection, scale: float, weight: Tensor | None, rows: Rows) -> Tensor:
        """lam out + (1 - lam) vbar, lam given or fitted on a few queries."""
        (centre,) = _means(rows, torch.ones_like(chosen.dropped) if weight is None else weight, v)
        if self.shrinkage is not None:
            lam = torch.as_tensor(self.shrinkage, dtype=centre.dtype, device=q.device).reshape(-1, 1, 1)
        else:
            log_mass = None if weight is None else weight.double().log()
            index, exact = rows.probe(_probes(len(chosen.kept)), q, k, v, log_mass, scale)
            exact, found = exact.to(centre.dtype) - centre, out.index_select(2, index).to(centre.dtype) - centre
            sums = torch.stack([found.square().sum((2, 3), keepdim=True), (found * exact).sum((2, 3), keepdim=True)])
            energy, product = rows.total(sums)
            lam = (product / energy.where(energy > 0, 1)).clamp(0, 1).where(energy > 0, 1)
        pieces = [torch.lerp(centre, out[:, :, block].to(centre.dtype), lam).to(out.dtype) for block in _blocks(out)]
        return _join(pieces)

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        N, M = layout.tokens, self.kept_keys(layout)
        if M == N:
            return attention_cost(N, N, D, H, itemsize=itemsize)
        return self.attend_to_cost(N, N, M, D, H, itemsize=itemsize)

    def attend_to_cost(self, queries: float, rows: float, kept: float, D: int, H: int, *, itemsize: int = 4) -> Cost:
        """Cost of `attend_to` where `kept` of `rows` keys are kept."""
        flops, moves = _EXTRA[self.fill]
        found = attention_cost(queries, kept, D, H, itemsize=itemsize)
        found += Cost((5 + flops) * queries * D * H, ((5 + moves) * queries + 4 * kept) * D * H * itemsize)
        if self.fill == "shrink" and self.shrinkage is None:
            found += attention_cost(_probes(int(kept)), rows, D, H, itemsize=itemsize)
        return found

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        N, M = layout.tokens, self.kept_keys(layout)
        if M == N:
            return 0.0
        return self.attend_to_workspace(N, M, D, H, itemsize=itemsize, own_key=self.own_key) + 40.0 * N

    def attend_to_workspace(
        self, queries: float, kept: float, D: int, H: int, *, itemsize: int, own_key: bool, weighted: bool = False
    ) -> float:
        """Bytes that `attend_to` holds at its peak beyond its output, with `kept` keys; weighted: rows have weights.

        The kept keys and values; the output against them; block by block (`_TEMPORARIES`) the result,
        and where there are several blocks, their joining. In half precision also the copies of q and k with the
        log-masses as extra channels, which the flash kernel of a GPU asks for.
        """
        wide = max(itemsize, 4)
        moved = self.fill in ("mass", "shrink")
        inner = wide if weighted and own_key and moved else itemsize
        q, near = queries * D * H, 2 * kept * D * H
        attending = 1.125 * (2 * q + near) * inner if inner == 2 and moved else q * (inner if inner > itemsize else 0)
        if not (own_key or self.fill in ("published", "count")):
            return near * inner + attending
        block = block_bytes(q)
        temporaries = _TEMPORARIES[own_key, self.fill != "none"] + (itemsize < 4) * (4 if own_key else 2)
        held = q * inner + (temporaries - itemsize / 4) * block  # the blocks done are output
        joined = q * (inner + itemsize) if block < 4 * q else 0.0
        return near * inner + max(attending, held, joined)

    def keys_per_query(self, layout: TokenLayout) -> float:
        N, M = layout.tokens, self.kept_keys(layout)
        return M + self.own_key * (N - M) / N + (M < N and self.fill in ("published", "count"))

    def fill_words(self) -> str:
        """What stands for the dropped keys, for `describe`."""
        return {
            "none": "nothing for the rest",
            "published": "a mean key of weight 1",
            "count": "a mean key of full weight",
            "mass": "kept keys weighted",
            "shrink": "kept keys weighted, shrunk to the mean" + ("" if self.shrinkage is None else " (fixed)"),
        }[self.fill]


def _tokens(chosen: Selection, weight: Tensor | None) -> float:
    """How many tokens the dropped rows stand for."""
    return len(chosen.dropped) - len(chosen.kept) if weight is None else weight[chosen.dropped].sum().item()


def _blocks(x: Tensor) -> list[slice]:
    """Slices of the tokens of x (B, H, N, D), few enough at a time to bound the temporaries."""
    size = max(1, base.BLOCK_ELEMENTS // max(1, x.shape[0] * x.shape[1] * x.shape[3]))
    return [slice(start, min(start + size, x.shape[2])) for start in range(0, x.shape[2], size)]


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _means(rows: Rows, among: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Means over all rows, with the weights `among` (N,): (B, H, 1, D) each, in float32 or better."""
    weight = among.to(torch.promote_types(tensors[0].dtype, torch.float32))
    here = weight[rows.first : rows.first + tensors[0].shape[2]]
    sums = [sum(here[block] @ x[:, :, block].to(here.dtype) for block in _blocks(x)) for x in tensors]
    return tuple((rows.total(torch.stack(sums)) / weight.sum()).unsqueeze(3))


def _probes(kept: int) -> int:
    """How many queries' exact outputs fit lam."""
    return max(1, min(1024, kept // 16))


def spread(tokens: int, count: int) -> Tensor:
    """`count` distinct token indices spread evenly by the golden ratio: no beat with the frames, no randomness."""
    steps = torch.arange(count, dtype=torch.float64) * ((5**0.5 - 1) / 2)
    return (steps.frac() * tokens).long().unique()
