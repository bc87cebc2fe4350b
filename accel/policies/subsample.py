"""Key subsampling on a grid (AVGGT's second step, arXiv 2512.02541), and ways to stand for the dropped keys.

Written from the paper's description; where its formula is not public, the reading taken here is said below.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend, combine
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import base
from accel.policies.base import Context, Cost, Policy, attention_cost

WINDOWS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 6: (2, 3), 8: (2, 4), 9: (3, 3), 16: (4, 4)}
"""Windows (rows, columns) of the named strides; 2, 4, 6 and 9 are the published ones."""
FILLS = ("none", "published", "count", "mass", "shrink")

_EXTRA = {"none": (0, 0), "published": (12, 2), "count": (12, 2), "mass": (6, 4), "shrink": (10, 7)}
"""What a fill adds per element of an (N, D) array of each head: operations, and elements read or written."""


class _Selection(NamedTuple):
    kept: Tensor  # (M,) token indices of the kept keys, ascending
    mass: Tensor  # (M,) how many tokens each stands for, itself included
    stand_in: Tensor  # (N,) the kept token that stands for each token; itself if kept
    dropped: Tensor  # (N,) bool


@dataclass(frozen=True)
class Subsample(Policy):
    """Keep all specials, all of frame 0 (`keep_first_frame`), and the first patch of each window elsewhere.

    With S the kept keys, R the n dropped ones and l_ij = scale q_i.k_j, the measure a query i averages against is
    S and its own key (once: nothing is added when i is in S), and for the rest, by `fill`:

    * "none": nothing.
    * "published": one key (mean of k over R, mean of v over R) of weight one, as AVGGT describes it; their supplement
      was not at hand. For i in R the mean leaves i out, whose own key is there already (exactly; O(N D)).
    * "count": the same mean key with the weight of the n keys it stands for, n - 1 for i in R.
    * "mass": no extra key; each kept patch has the weight of its window (partial windows at the border: what they
      hold). For i in R the window's patch weighs one less, since i speaks for itself. Exact where the patches of a
      window coincide.
    * "shrink": out = lam o + (1 - lam) vbar, with o of "mass" and vbar the mean of all v. lam is `shrinkage` (one
      number, or one per head), or else the least-squares value per batch and head,
      sum <o_i - vbar, o*_i - vbar> / sum |o_i - vbar|^2 in [0, 1], over a fixed low-discrepancy subset of min(1024,
      |S|/16) queries whose exact outputs o* are computed: about 1/16 more operations. When the errors o - o* are
      uncorrelated with o* it is the optimum B^2/(B^2 + MSE), and it also counts the bias.

    `stride` names a window (see WINDOWS), or give `window` = (rows, columns); the other one is filled in. No N x N
    matrix: N x |S| fused attention plus O(N D). Exact for stride 1.
    """

    stride: int | None = None
    window: tuple[int, int] | None = None
    keep_first_frame: bool = True
    fill: str = "none"
    shrinkage: float | tuple[float, ...] | None = None

    name: ClassVar[str] = "subsample"
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def __post_init__(self) -> None:
        window = self.window
        if window is None:
            window = WINDOWS.get(4 if self.stride is None else self.stride)
            if window is None:
                raise AccelError(f"stride={self.stride!r} has no window; use one of {list(WINDOWS)}, or give window")
        if (
            not isinstance(window, tuple | list)
            or len(window) != 2
            or not all(type(n) is int and n >= 1 for n in window)
        ):
            raise AccelError(f"window={window!r} must be two integers (rows, columns), each at least 1")
        if self.stride not in (None, window[0] * window[1]):
            raise AccelError(f"stride={self.stride} disagrees with window={window}; give one of the two")
        if self.fill not in FILLS:
            raise AccelError(f"fill={self.fill!r} is not one of {list(FILLS)}")
        if self.shrinkage is not None:
            values = self.shrinkage if isinstance(self.shrinkage, tuple) else (self.shrinkage,)
            if (
                self.fill != "shrink"
                or not values
                or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in values)
            ):
                raise AccelError(f'shrinkage={self.shrinkage!r} needs fill="shrink" and values in [0, 1]')
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "stride", window[0] * window[1])

    @classmethod
    def avggt(cls, stride: int = 4, *, keep_first_frame: bool = True) -> Subsample:
        """The published setting (VGGT; for pi3 keep_first_frame=False). Its first layers use `Frame` instead."""
        return cls(stride=stride, keep_first_frame=keep_first_frame, fill="published")

    def check(self, layout: TokenLayout) -> None:
        rows, columns = self.window
        if layout.patches_per_frame == 0:
            raise AccelError(f"subsample has no patches to drop in {layout}; use exact")
        if layout.frames == 1:
            raise AccelError(f"subsample needs at least 2 frames, {layout} has one; use exact")
        if rows > layout.grid_h or columns > layout.grid_w:
            raise AccelError(
                f"subsample window {rows}x{columns} is larger than the grid of {layout}; use a smaller one"
            )

    def select(self, layout: TokenLayout, *, device: torch.device | str | None = None) -> _Selection:
        """Which keys are kept, what each stands for, and which kept key stands for each token."""
        rows, columns = self.window
        tokens = torch.arange(layout.tokens)
        grid, stand_in = layout.grid(), tokens.clone()
        first = (torch.arange(layout.grid_h) // rows * rows, torch.arange(layout.grid_w) // columns * columns)
        stand_in[grid] = grid[:, first[0]][:, :, first[1]]
        if self.keep_first_frame:
            stand_in[: layout.tokens_per_frame] = tokens[: layout.tokens_per_frame]
        dropped = stand_in != tokens
        kept = tokens[~dropped]
        mass = torch.bincount(stand_in, minlength=layout.tokens)[kept]
        return _Selection(*(x.to(device) for x in (kept, mass, stand_in, dropped)))

    def kept_keys(self, layout: TokenLayout) -> int:
        """M = |S|."""
        sampled = layout.frames - self.keep_first_frame
        per_frame = ceil(layout.grid_h / self.window[0]) * ceil(layout.grid_w / self.window[1])
        return layout.tokens - sampled * (layout.patches_per_frame - per_frame)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        if isinstance(self.shrinkage, tuple) and len(self.shrinkage) != q.shape[1]:
            raise AccelError(f"shrinkage has {len(self.shrinkage)} values for {q.shape[1]} heads; give one per head")
        chosen = self.select(layout, device=q.device)
        if len(chosen.kept) == layout.tokens:
            return scaled_dot_product_attention(q, k, v, scale=scale)

        weighted = self.fill in ("mass", "shrink")
        k_kept, v_kept = k.index_select(2, chosen.kept), v.index_select(2, chosen.kept)
        k_mean = v_mean = None
        if self.fill in ("published", "count"):
            k_mean, v_mean = _mean(k, chosen.dropped), _mean(v, chosen.dropped)
        out, lse = attend(q, k_kept, v_kept, log_mass=chosen.mass.double().log() if weighted else None, scale=scale)

        blocks = [self._add_rest(q, k, v, out, lse, chosen, k_mean, v_mean, scale, block) for block in _blocks(q)]
        out = _join(blocks)
        return self._shrink(q, k, v, out, scale, len(chosen.kept)) if self.fill == "shrink" else out

    def _add_rest(self, q, k, v, out, lse, chosen, k_mean, v_mean, scale, block) -> Tensor:
        """Attention against S -> attention against the policy's whole measure, for one block of queries; O(N D)."""
        dtype, drop = lse.dtype, chosen.dropped[block]
        q_i, k_i, v_i, out = (x[:, :, block].to(dtype) for x in (q, k, v, out))
        lse = lse[:, :, block]
        own = scale * (q_i * k_i).sum(-1)
        if self.fill in ("mass", "shrink"):  # the stand-in gives up the one token that now speaks for itself
            index = chosen.stand_in[block]
            k_j, v_j = (x.index_select(2, index).to(dtype) for x in (k, v))
            share = torch.exp(scale * (q_i * k_j).sum(-1) - lse).where(drop, 0)  # at most 1/2: its weight is 2 or more
            out = (out - share.unsqueeze(-1) * v_j) / (1 - share).unsqueeze(-1)
            lse = lse + torch.log1p(-share)
        rest = None
        if self.fill in ("published", "count"):
            n = len(chosen.dropped) - len(chosen.kept)
            others = (n - drop.to(dtype)).clamp_min(1)
            logit = (n * scale * (q_i @ k_mean.transpose(-1, -2)).squeeze(-1) - own.where(drop, 0)) / others
            if self.fill == "count":
                logit = logit + others.log()
            logit = logit.where(n > drop.to(dtype), -torch.inf)
            rest = (n * v_mean - v_i * drop.unsqueeze(-1)) / others.unsqueeze(-1), logit
        out, lse = combine(out, lse, v_i, own.where(drop, -torch.inf))
        if rest is not None:
            out, lse = combine(out, lse, *rest)
        return out.to(q.dtype)

    def _shrink(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, kept: int) -> Tensor:
        """lam out + (1 - lam) vbar, lam given or fitted on a few queries."""
        centre = _mean(v)
        if self.shrinkage is not None:
            lam = torch.as_tensor(self.shrinkage, dtype=centre.dtype, device=q.device).reshape(-1, 1, 1)
        else:
            index = _spread(q.shape[2], _probes(kept)).to(q.device)
            exact = attend(q.index_select(2, index), k, v, scale=scale)[0].to(centre.dtype) - centre
            found = out.index_select(2, index).to(centre.dtype) - centre
            energy = found.square().sum((2, 3), keepdim=True)
            lam = ((found * exact).sum((2, 3), keepdim=True) / energy).clamp(0, 1).where(energy > 0, 1)
        pieces = [torch.lerp(centre, out[:, :, block].to(centre.dtype), lam).to(out.dtype) for block in _blocks(out)]
        return _join(pieces)

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        N, M = layout.tokens, self.kept_keys(layout)
        if M == N:
            return attention_cost(N, N, D, H, itemsize=itemsize)
        attention = attention_cost(N, M, D, H, itemsize=itemsize)
        flops, moves = _EXTRA[self.fill]  # M / N below is the copy of the kept keys
        extra = Cost((5 + flops) * N * D * H, (5 + moves + 4 * M / N) * N * D * H * itemsize)
        if self.fill == "shrink" and self.shrinkage is None:
            extra += attention_cost(_probes(M), N, D, H, itemsize=itemsize)
        return attention + extra

    def keys_per_query(self, layout: TokenLayout) -> float:
        N, M = layout.tokens, self.kept_keys(layout)
        return M + (N - M) / N + (M < N and self.fill in ("published", "count"))

    def describe(self) -> str:
        rows, columns = self.window
        rest = {
            "none": "nothing for the rest",
            "published": "a mean key of weight 1",
            "count": "a mean key of full weight",
            "mass": "kept keys weighted",
            "shrink": "kept keys weighted, shrunk to the mean" + ("" if self.shrinkage is None else " (fixed)"),
        }[self.fill]
        first = "frame 0 whole" if self.keep_first_frame else "every frame alike"
        return f"subsample: 1 patch in {self.stride} ({rows}x{columns}), {first}, {rest}"

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (
            cls(stride=1),
            cls(stride=2),
            cls.avggt(4),
            cls(stride=4, fill="count"),
            cls(window=(3, 2), keep_first_frame=False, fill="count"),
            cls(stride=6, fill="mass"),
            cls(stride=4, keep_first_frame=False, fill="shrink"),
            cls(stride=9, fill="shrink", shrinkage=(0.25, 0.75)),
        )


def _blocks(x: Tensor) -> list[slice]:
    """Slices of the tokens of x (B, H, N, D), few enough at a time to bound the temporaries."""
    size = max(1, base.BLOCK_ELEMENTS // (x.shape[0] * x.shape[1] * x.shape[3]))
    return [slice(start, start + size) for start in range(0, x.shape[2], size)]


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _mean(x: Tensor, among: Tensor | None = None) -> Tensor:
    """Mean over the tokens, or over those marked in `among` (N,): (B, H, 1, D) in float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = x.new_ones(x.shape[2], dtype=dtype) if among is None else among.to(dtype)
    total = sum(weight[block] @ x[:, :, block].to(dtype) for block in _blocks(x))
    return (total / weight.sum()).unsqueeze(2)


def _probes(kept: int) -> int:
    """How many queries' exact outputs fit lam."""
    return max(1, min(1024, kept // 16))


def _spread(tokens: int, count: int) -> Tensor:
    """`count` distinct token indices spread evenly by the golden ratio: no beat with the frames, no randomness."""
    steps = torch.arange(count, dtype=torch.float64) * ((5**0.5 - 1) / 2)
    return (steps.frac() * tokens).long().unique()
