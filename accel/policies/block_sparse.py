"""Block-sparse attention (Faster VGGT, arXiv 2509.07120), and what may stand for the blocks it drops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend, combine
from accel.errors import AccelError
from accel.flex import flex_blocks, flex_kernel
from accel.layout import TokenLayout
from accel.policies import base
from accel.policies.base import Context, Cost, Policy, attention_cost, block_bytes
from accel.policies.block_map import Pooled, block_scores, pool, select_blocks
from accel.policies.hilbert import hilbert_order

FILLS = ("none", "mass", "cumulant")
ORDERS = ("raster", "hilbert")
_CACHED = 4
"""On a CPU a gather holds this part of BLOCK_ELEMENTS, 16 MiB in float32: fewer calls outweigh more cache misses."""


_MAP_BYTES = {(False, False): 24, (True, False): 32, (False, True): 36, (True, True): 44}
"""Bytes that a pair of blocks takes while the map is made, with cumulants, with a threshold: scores, their order."""


class _Keys(NamedTuple):
    k: Tensor  # (B, H, blocks, key_block, D)
    v: Tensor
    pooled: Pooled
    v_mean: Tensor  # (B, H, blocks, D)
    k_tail: Tensor  # (B, H, T, D): what every query sees
    v_tail: Tensor


@dataclass(frozen=True)
class BlockSparse(Policy):
    """Each block of patch queries attends to the key blocks of largest estimated mass, and to all special tokens.

    The patches, frame by frame in `order`, are cut into blocks of `query_block` queries and `key_block` = n keys. The
    softmax of the pooled scores (see block_map) over key blocks estimates the mass of each, per head; a query block
    keeps the heaviest. Special tokens see everything, and everybody sees them and the last patches, fewer than n, that
    fill no key block. The dropped blocks, by `fill`:

    * "none": are left out, as published.
    * "mass": each is one key (its mean k, its mean v) of mass n: a measure of two levels that loses nothing of the
      total mass, exact where the keys of a dropped block coincide.
    * "cumulant": the same with mass n exp((s^2/2) sum_d qbar_d^2 sigma_d^2), the second cumulant of the logits in the
      block at the mean query; the selection uses this mass, too.

    `density` (one number, or one per head) is what a query pays for over the number of patch keys: kept keys, and one
    for each stand-in; with fill "none" simply the fraction of blocks kept (rounded down, at least one block). With
    `threshold` = tau a query block stops earlier, at the blocks whose masses sum to tau, but not below the fraction
    `floor` of the blocks. So the declared cost and keys per query are exact without a threshold and an upper bound with
    it. Density one without a threshold is exact attention.

    The map is made for some blocks of queries at a time and holds BLOCK_ELEMENTS scores. On CUDA flex_attention reads
    the kept blocks in place; elsewhere, with gradients, or without a compiler (said once in the log) they are gathered.
    The selection is piecewise constant: gradients go through the kept and pooled keys, not through the choice.

    It wins where attention is concentrated (middle layers) and loses to subsampling where it is nearly uniform.
    """

    density: float | tuple[float, ...] = 0.25
    threshold: float | None = None
    floor: float = 0.0
    query_block: int = 128
    key_block: int = 64
    fill: str = "mass"
    order: str = "raster"

    name: ClassVar[str] = "block_sparse"
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def __post_init__(self) -> None:
        for name in ("query_block", "key_block"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 2:
                raise AccelError(f"{name}={getattr(self, name)!r} must be an integer, at least 2")
        if isinstance(self.density, list):
            object.__setattr__(self, "density", tuple(self.density))
        densities = self.density if isinstance(self.density, tuple) else (self.density,)
        if not densities or not all(_is_number(x) and 0 < x <= 1 for x in densities):
            raise AccelError(f"density={self.density!r} must be in (0, 1], one number or one per head")
        if self.threshold is not None and not (_is_number(self.threshold) and 0 < self.threshold <= 1):
            raise AccelError(f"threshold={self.threshold!r} must be in (0, 1], or None")
        if not (_is_number(self.floor) and 0 <= self.floor <= min(densities)):
            raise AccelError(f"floor={self.floor!r} must be between 0 and density={self.density!r}")
        if self.floor and self.threshold is None:
            raise AccelError(f"floor={self.floor} has no meaning without a threshold; give one, or raise density")
        if self.fill not in FILLS:
            raise AccelError(f"fill={self.fill!r} is not one of {list(FILLS)}")
        if self.order not in ORDERS:
            raise AccelError(f"order={self.order!r} is not one of {list(ORDERS)}")

    @classmethod
    def faster_vggt(
        cls, sparse_ratio: float = 0.75, cdf_threshold: float | None = None, *, most: float = 1.0, order: str = "raster"
    ) -> BlockSparse:
        """The published setting: at least the fraction 1 - sparse_ratio of the key blocks, and with a threshold all
        those that it asks for, here up to the fraction `most` of them, for which the cost is declared."""
        if not (_is_number(sparse_ratio) and 0 <= sparse_ratio < 1):
            raise AccelError(f"sparse_ratio={sparse_ratio!r} must be in [0, 1)")
        kept = 1 - sparse_ratio
        if cdf_threshold is None:
            return cls(density=kept, fill="none", order=order)
        return cls(density=most, threshold=cdf_threshold, floor=kept, fill="none", order=order)

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        small = {"query_block": 8, "key_block": 4}
        return (
            cls(density=0.5, fill="none", **small),
            cls(density=0.5, fill="mass", order="hilbert", **small),
            cls(density=0.6, fill="cumulant", query_block=16, key_block=8),
            cls(density=0.6, threshold=0.9, floor=0.2, fill="none", **small),
            cls(density=(0.4, 0.8), fill="mass", query_block=12, key_block=6),
            cls(density=1.0, **small),
        )

    def check(self, layout: TokenLayout) -> None:
        if layout.frames * layout.patches_per_frame < self.key_block:
            raise AccelError(
                f"block_sparse with key_block={self.key_block} finds no full block in {layout}; "
                "use smaller blocks, or exact"
            )

    def check_heads(self, H: int) -> None:
        """AccelError unless there is one density for each of H heads, or one for all."""
        if isinstance(self.density, tuple) and len(self.density) not in (1, H):
            raise AccelError(f"density has {len(self.density)} values for {H} heads; give one per head, or one for all")

    def patch_order(self, layout: TokenLayout) -> Tensor:
        """Token indices of the patches, frame by frame in `order`: LongTensor (M,)."""
        patches = layout.grid().flatten(1)
        if self.order == "hilbert":
            patches = patches[:, hilbert_order(layout.grid_h, layout.grid_w)]
        return patches.reshape(-1)

    def kept_blocks(self, layout: TokenLayout) -> tuple[int, ...]:
        """Key blocks that a query block keeps (with a threshold: at most), for each entry of density."""
        n, blocks = self.key_block, layout.frames * layout.patches_per_frame // self.key_block
        kept = []
        for density in self.density if isinstance(self.density, tuple) else (self.density,):
            paid = density * blocks if self.fill == "none" else (density * n - 1) * blocks / (n - 1)
            kept.append(max(1, int(paid + 1e-9)))
        return tuple(kept)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        H, n = q.shape[1], self.key_block
        kept = self.kept_blocks(layout)
        self.check_heads(H)
        patches = self.patch_order(layout)
        full = len(patches) // n * n
        if self.threshold is None and min(kept) * n == full:
            return scaled_dot_product_attention(q, k, v, scale=scale)
        special = layout.special_index()
        tail = torch.cat([special, patches[full:]]).to(q.device)
        places, special = patches.to(q.device), special.to(q.device)

        k_blocks, v_blocks = (x.index_select(2, places[:full]).unflatten(2, (-1, n)) for x in (k, v))
        keys = _Keys(
            k_blocks,
            v_blocks,
            pool(k_blocks, variance=self.fill == "cumulant"),
            v_blocks.mean(3),
            k.index_select(2, tail),
            v.index_select(2, tail),
        )
        most = torch.tensor(kept if len(kept) == H else kept * H, device=q.device)
        pieces = []
        if len(special):
            pieces.append(scaled_dot_product_attention(q.index_select(2, special), k, v, scale=scale))
        whole = len(patches) // self.query_block * self.query_block  # the rest is a block of its own
        for part, size in ((places[:whole], self.query_block), (places[whole:], len(patches) - whole)):
            rows = max(1, base.BLOCK_ELEMENTS // (q.shape[0] * H * max(k_blocks.shape[2], size * q.shape[3])))
            for chosen in part.split(rows * size) if len(part) else ():
                blocks = q.index_select(2, chosen).unflatten(2, (-1, size))
                pieces.append(self._query_blocks(blocks, keys, most, scale))
        return torch.cat(pieces, 2).index_select(2, torch.cat([special, places]).argsort())

    def _query_blocks(self, q: Tensor, keys: _Keys, most: Tensor, scale: float) -> Tensor:
        """Output of some blocks of queries q (B, H, rows, size, D): (B, H, rows * size, D)."""
        total = keys.k.shape[2]
        scores, second = block_scores(pool(q).mean, keys.pooled, scale)
        least = max(1, int(self.floor * total + 1e-9))
        order, count = select_blocks(scores.detach(), most, threshold=self.threshold, least=least)
        out, lse = _kept_blocks(q, keys, order, count, scale)
        if keys.k_tail.shape[2]:
            out, lse = combine(out, lse, *attend(q.flatten(2, 3), keys.k_tail, keys.v_tail, scale=scale))
        if self.fill != "none":
            out, lse = combine(out, lse, *_stand_ins(q, keys, order, count, second, scale))
        return out

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        M, special = layout.frames * layout.patches_per_frame, layout.frames * layout.special
        kept, blocks = self.kept_blocks(layout), M // self.key_block
        if self.threshold is None and min(kept) == blocks:
            return attention_cost(layout.tokens, layout.tokens, D, H, itemsize=itemsize)
        total = attention_cost(special, layout.tokens, D, H, itemsize=itemsize)
        rows = -(-M // self.query_block)
        pooled = 2.0 if self.fill == "cumulant" else 1.0
        total += Cost(2.0 * pooled * rows * blocks * D * H, 4.0 * (2 * layout.tokens + 3 * M) * D * H * itemsize)
        for count in kept:
            share, keys = H / len(kept), self._keys(layout, count)
            total += share * attention_cost(M, keys, D, 1, itemsize=itemsize)
        return total + self.gather_cost(layout, D, H, itemsize=itemsize)

    def gather_cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        """The part of `cost` that a kernel which reads blocks in place spares: each row of blocks gathers its keys."""
        M, kept = layout.frames * layout.patches_per_frame, self.kept_blocks(layout)
        if self.threshold is None and min(kept) == M // self.key_block:
            return Cost()
        rows = -(-M // self.query_block)
        keys = sum(self._keys(layout, count) for count in kept) / len(kept)
        return Cost(0.0, 6.0 * rows * keys * D * H * itemsize)

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        """The patches' k and v in blocks; then the map of some blocks of queries, what they gather and what they
        give, or the joining and reordering of all that was given."""
        M, kept = layout.frames * layout.patches_per_frame, self.kept_blocks(layout)
        blocks, rows = M // self.key_block, -(-M // self.query_block)
        if self.threshold is None and min(kept) == blocks:
            return 0.0
        wide, part = max(itemsize, 4), M * D * H
        pooled = (2 + (self.fill == "cumulant")) * blocks * D * H * wide
        tail = 2 * layout.frames * layout.special * D * H
        keys = (2.0 * part + tail) * itemsize + pooled + 64 * layout.tokens  # and orders of the tokens
        spread = block_bytes(part) if self.fill == "cumulant" else 0.0
        at_once = max(1, base.BLOCK_ELEMENTS // (H * max(blocks, self.query_block * D)))  # blocks of queries
        pairs, queries = (min(rows, at_once) * H * n for n in (blocks, self.query_block * D))
        gathered = (
            2
            * itemsize
            * min(
                base.BLOCK_ELEMENTS // _CACHED, pairs * max(max(kept) * self.key_block, blocks - min(kept)) * D / blocks
            )
        )
        chosen = _MAP_BYTES[self.fill == "cumulant", self.threshold is not None] * pairs
        working = chosen + gathered + 6.0 * queries * wide
        return max(keys + working, keys + 2.0 * layout.tokens * D * H * itemsize, spread)

    def _keys(self, layout: TokenLayout, kept: int) -> int:
        """Keys in the softmax of a patch query: kept blocks, stand-ins, specials and the last patches."""
        M = layout.frames * layout.patches_per_frame
        blocks = M // self.key_block
        stand_ins = 0 if self.fill == "none" else blocks - kept
        return kept * self.key_block + stand_ins + M % self.key_block + layout.frames * layout.special

    def keys_per_query(self, layout: TokenLayout) -> float:
        """With a threshold an upper bound."""
        kept, M = self.kept_blocks(layout), layout.frames * layout.patches_per_frame
        patch_keys = sum(self._keys(layout, count) for count in kept) / len(kept)
        return (M * patch_keys + (layout.tokens - M) * layout.tokens) / layout.tokens

    def describe(self) -> str:
        density = self.density if isinstance(self.density, tuple) else (self.density,)
        text = f"{min(density):g}" if min(density) == max(density) else f"{min(density):g} to {max(density):g}"
        until = "" if self.threshold is None else f", until mass {self.threshold:g}"
        rest = {"none": "", "mass": ", rest as means", "cumulant": ", rest as means with cumulants"}[self.fill]
        return f"block-sparse {self.query_block}x{self.key_block}: {text} of the keys{until}{rest}, {self.order}"


def _kept_blocks(q: Tensor, keys: _Keys, order: Tensor, count: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(out, lse) of q (B, H, rows, size, D) against the first `count` key blocks of `order` (B, H, rows, blocks)."""
    size, (n, D) = q.shape[3], keys.k.shape[3:]
    kernel = None
    if q.is_cuda and size % 128 == 0 and n in (64, 128) and not _needs_grad(q, keys.k, keys.v):
        kernel = flex_kernel(str(q.device), q.dtype, q.shape[1], D, (size, n))
    if kernel is not None:
        rank = torch.arange(order.shape[-1], device=q.device)
        kept = torch.zeros_like(order, dtype=torch.bool)
        kept = kept.scatter(-1, order, rank < count.unsqueeze(-1))
        flat = (x.flatten(2, 3) for x in (q, keys.k, keys.v))
        return flex_blocks(*flat, kept, scale, query_block=size, key_block=n, kernel=kernel)

    k, v = (x.reshape(-1, n * D) for x in (keys.k, keys.v))
    # without gradients one buffer serves all calls: a fresh one costs more in page faults than in copying
    reuse = not _needs_grad(q, keys.k, keys.v)
    buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def gathered(queries: Tensor, blocks: Tensor, kept: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = blocks[:, :kept].reshape(-1)
        if reuse:
            if len(index) not in buffers:
                buffers.clear()
                buffers[len(index)] = k.new_empty(len(index), n * D), v.new_empty(len(index), n * D)
            near = (torch.index_select(x, 0, index, out=y) for x, y in zip((k, v), buffers[len(index)], strict=True))
        else:
            near = (x.index_select(0, index) for x in (k, v))
        return attend(queries, *(x.view(len(queries), 1, kept * n, D) for x in near), scale=scale)

    return _by_count(q, order, count, n * D, gathered)


def _stand_ins(
    q: Tensor, keys: _Keys, order: Tensor, count: Tensor, second: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(out, lse) of q against the pooled keys of the blocks that are not kept, each with its mass."""
    total, n, D = keys.k.shape[2:]
    k, v = keys.pooled.mean.to(q.dtype).reshape(-1, D), keys.v_mean.reshape(-1, D)
    flat = None if second is None else second.gather(-1, order).flatten(0, 2)

    def pooled(queries: Tensor, blocks: Tensor, kept: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        if kept == total:  # nothing was dropped: the empty measure
            return torch.zeros_like(queries), queries.new_full(queries.shape[:3], -torch.inf)
        index = blocks[:, kept:].reshape(-1)
        far = (x.index_select(0, index).view(len(queries), 1, total - kept, D) for x in (k, v))
        mass = None if flat is None else flat[rows, None, kept:]
        out, lse = attend(queries, *far, log_mass=mass, scale=scale)
        return out, lse + log(n)

    return _by_count(q, order, count, D, pooled)


def _by_count(
    q: Tensor, order: Tensor, count: Tensor, elements: int, call: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Run call(queries, blocks, kept, rows) on the rows of each number of kept blocks, some rows at a time.

    queries (rows, 1, size, D) of q (B, H, n, size, D); blocks (rows, blocks): `order` as indices over batches and
    heads; `elements` of one block, of which a call may gather BLOCK_ELEMENTS. Returns out and lse over n * size.
    """
    B, H, n, size, _ = q.shape
    total = order.shape[-1]
    first = total * torch.arange(B * H, device=q.device).view(B, H, 1, 1)
    blocks, count = (order + first).reshape(-1, total), count.reshape(-1)
    queries = q.reshape(B * H * n, 1, size, -1)
    limit = base.BLOCK_ELEMENTS // (1 if q.is_cuda else _CACHED)
    places, found = [], []
    for kept in count.unique().tolist():
        rows = (count == kept).nonzero().squeeze(1)
        for part in rows.split(max(1, limit // (max(kept, total - kept) * elements))):
            found.append(call(queries.index_select(0, part), blocks.index_select(0, part), kept, part))
            places.append(part)
    back = torch.cat(places).argsort()
    out, lse = (torch.cat(x).index_select(0, back) for x in zip(*found, strict=True))
    return out.view(B, H, n * size, -1), lse.view(B, H, n * size)


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
