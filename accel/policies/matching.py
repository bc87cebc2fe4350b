"""Groups of tokens that pass attention as one: destinations, matching, averages, copies. Pure mathematics.

`Matching` partitions the tokens: destinations and the worst matched others get a row of their own, every other token
joins its most similar destination (bipartite matching: ToMe, Bolya et al., arXiv 2210.09461). `Groups` holds the
result; `restore` spreads the rows' outputs over the tokens to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from math import ceil

import torch
from torch import Tensor

from accel.layout import TokenLayout
from accel.policies import base
from accel.policies.base import Cost, attention_cost, block_bytes

SAMPLE, _STEPS = 512, 2  # tokens from which principal channels are found; steps of the subspace iteration
_PART = 64  # candidates among which a maximum is found at once; their number is padded to a multiple by repetition
_RIDGE = 0.1  # of the mean variance of a channel


@dataclass(frozen=True)
class Groups:
    """A partition of the N tokens into M groups, per batch and head or shared by them (a size of 1 broadcasts).

    row (B or 1, H or 1, N): the group of each token. representative (B or 1, H or 1, M): one token of each group, its
    destination; ascending, so that group order is token order. mass (B or 1, H or 1, M): tokens in each group.

    Here everything is at hand. In `accel.distributed` a rank has some of the tokens, and the rows of some heads; what
    involves the others is done by methods that it replaces, so that every formula is written once.
    """

    row: Tensor
    representative: Tensor
    mass: Tensor

    @property
    def whole(self) -> Groups:
        """The partition of all tokens."""
        return self

    def merge(self, x: Tensor) -> Tensor:
        """Mean over each group, summed in float32 or better: (B, H, N, D) -> (B, H, M, D)."""
        wide, rows = torch.promote_types(x.dtype, torch.float32), self.representative.shape[-1]
        if self.row.shape[:2] == (1, 1):
            total = x.new_zeros(*x.shape[:2], rows, x.shape[3], dtype=wide).index_add(2, self.row[0, 0], x.to(wide))
        else:
            index = self.row.expand(x.shape[:3]).unsqueeze(-1).expand_as(x)
            total = x.new_zeros(*x.shape[:2], rows, x.shape[3], dtype=wide).scatter_add(2, index, x.to(wide))
        return (total / self.mass.unsqueeze(-1)).to(x.dtype)

    def unmerge(self, x: Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """Each token (or each of `tokens`) gets the row of its group: (B, H, M, D) -> (B, H, N, D)."""
        row = self.row[..., tokens]
        if row.shape[:2] == (1, 1):
            return x.index_select(2, row[0, 0])
        return x.gather(2, row.expand(*x.shape[:2], -1).unsqueeze(-1).expand(-1, -1, -1, x.shape[3]))

    def probes(self) -> Tensor:
        """The tokens whose queries fit the step length of `restore`."""
        return spread(self.row.shape[-1], probes(self.representative.shape[-1])).to(self.row.device)

    def take(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Of x (B, H, N, D) some tokens, for the heads whose rows are at hand."""
        return x.index_select(2, tokens)

    def fetch(self, x: Tensor) -> Tensor:
        """Of rows (B, H, M, D) those that `unmerge` looks up, for all heads."""
        return x

    def all_heads(self, x: Tensor) -> Tensor:
        """Of a value for each head (B, H, ...) at hand that of all heads."""
        return x


@dataclass(frozen=True)
class Matching:
    """How tokens are grouped: M = max(keep N, destinations and protected) rows, known from the layout alone.

    Destinations are all specials, all of frame 0 (`first_frame`), and one random patch of each `cell` (rows, columns)
    of the other frames, partial cells at the border too; without `cell`, the finest of 2x2, 2x3, 3x3, 3x4, ... that
    fits into keep N. `protect` is the share of tokens kept at even distances. `channels` principal channels of the
    metric are compared (None: all), by their cosine. `window`: only destinations of the same window of so many frames
    are candidates, and those of frame 0 with `first_frame`; None is all frames. per_head: one topology per head.
    """

    keep: float
    cell: tuple[int, int] | None = None
    first_frame: bool = True
    protect: float = 0.0
    channels: int | None = None
    window: int | None = None
    per_head: bool = False
    seed: int = 33

    def destinations(self, layout: TokenLayout) -> Tensor:
        """(N,) bool: the destinations, on the CPU."""
        cell = self._cell(layout)
        chosen = torch.zeros(layout.tokens, dtype=torch.bool)
        chosen[layout.special_index()] = True
        row, column, height, width = _cells(layout, cell)
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(layout.frames, len(height), len(width), generator=generator, dtype=torch.float64)
        place = (draw * (height[:, None] * width)).long()
        frame = torch.arange(layout.frames)[:, None, None]
        chosen[layout.grid()[frame, row[:, None] + place // width, column + place % width]] = True
        if self.first_frame:
            chosen[: layout.tokens_per_frame] = True
        return chosen

    def kept(self, layout: TokenLayout) -> Tensor:
        """(N,) bool: the destinations and the tokens that `protect` keeps, whatever they match."""
        return self._with_protected(self.destinations(layout))

    def rows(self, layout: TokenLayout) -> int:
        """M."""
        if self.keep == 1:
            return layout.tokens
        return max(round(self.keep * layout.tokens), int(self.kept(layout).sum()))

    @torch.no_grad()
    def groups(self, features: list[Tensor], layout: TokenLayout) -> Groups:
        """The groups that the metric makes: features (B, h, N, F_i), h = 1 for all heads together, are concatenated.

        Similarities are held in blocks of at most BLOCK_ELEMENTS. Not differentiable: the groups are indices.
        """
        metric, chosen = self.metric(features, spread(layout.tokens, SAMPLE)), self.destinations(layout)
        table = metric.index_select(2, chosen.nonzero()[:, 0].to(metric.device))
        return self.partition(*self.nearest(metric, table, chosen, layout), chosen)

    def metric(self, features: list[Tensor], sample: Tensor, total: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Unit vectors (B, h, N, c), float32 or better, of which the products are compared.

        Channels are found from the tokens `sample`; total: what sums over the ranks that have the others.
        """
        return _unit(_principal(features, self.channels, self.seed, sample, total))

    def nearest(
        self, metric: Tensor, table: Tensor, is_destination: Tensor, layout: TokenLayout, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Similarity and index of the destination that represents each token best; for destinations inf and themselves.

        metric (B, h, n, c): of the n tokens from `first` on; table (B, h, d, c): of all destinations, ascending.
        """
        device, own = metric.device, range(first, first + metric.shape[2])
        entry = is_destination.cumsum(0) - 1
        similarity = metric.new_full(metric.shape[:3], torch.inf)
        stand_in = torch.arange(own.start, own.stop, device=device).expand(metric.shape[:3]).clone()
        for block, candidates in self._blocks(layout, is_destination, metric.shape[0] * metric.shape[1], own):
            block, entries = (block - first).to(device), entry[candidates].to(device)
            best, place = _largest(metric.index_select(2, block) @ table.index_select(2, entries).mT)
            similarity[:, :, block], stand_in[:, :, block] = best, candidates.to(device)[place]
        similarity.masked_fill_(similarity.isnan(), -torch.inf)  # NaN, sorted last, would unseat destinations
        return similarity, stand_in

    def partition(self, similarity: Tensor, stand_in: Tensor, is_destination: Tensor) -> Groups:
        """The groups, from what `nearest` found for all tokens (B, h, N)."""
        N, kept = len(is_destination), self._with_protected(is_destination)
        fixed = int(kept.sum())
        similarity = similarity.masked_fill(kept.to(similarity.device), torch.inf)
        surplus = max(round(self.keep * N) - fixed, 0)
        own = similarity.sort(dim=-1, stable=True).indices  # first the tokens that no destination represents well
        own = torch.cat([own[..., :surplus], own[..., N - fixed :]], -1)
        return _grouped(stand_in, own.sort(-1).values)

    def cost(self, layout: TokenLayout, F: int, H: int, *, itemsize: int = 4) -> Cost:
        """Operations and bytes of `groups` for F features of all heads together: principal channels, similarities."""
        N, h = layout.tokens, H if self.per_head else 1
        F, pairs = F // h, self._pairs(layout)
        c = F if self.channels is None else min(self.channels, F)
        found = Cost(2.0 * pairs * c * h, 2.0 * pairs * h * itemsize + N * (F + 2 * c) * h * itemsize)
        if c < F:
            found += Cost(2.0 * h * F * c * (N + 2 * _STEPS * min(SAMPLE, N)), 2.0 * min(SAMPLE, N) * F * h * itemsize)
        return found

    def workspace(self, layout: TokenLayout, F: int, H: int, *, itemsize: int = 4) -> float:
        """Bytes that `groups` holds at its peak for F features of all heads together: the metric twice or thrice, or
        the metric, indices of the tokens, and a block of similarities with its largest ones."""
        N, h, wide = layout.tokens, H if self.per_head else 1, max(itemsize, 4)
        whole = self.channels is None or self.channels * h >= F
        c = F // h if whole else self.channels
        metric = float(wide * N * c * h)
        copied = N * F * (itemsize if whole else wide / H * h) if itemsize < wide else 0.0
        made = max(copied + metric, 2 * metric) if whole else copied + 3 * metric
        chosen = self.rows(layout) - N * self.protect  # destinations are among the rows
        scores = 2 * block_bytes(self._pairs(layout) * h) + wide * c * h * min(chosen, N)
        return max(made, metric + h * (12.0 * N + scores / h), metric + 64.0 * N * h)

    def _with_protected(self, chosen: Tensor) -> Tensor:
        chosen, N = chosen.clone(), len(chosen)
        number = int(self.protect * N)
        if number:
            chosen[torch.arange(number) * N // number] = True
        return chosen

    def _cell(self, layout: TokenLayout) -> tuple[int, int]:
        if self.cell is not None:
            return self.cell
        whole = layout.tokens_per_frame if self.first_frame else 0
        frames = layout.frames - self.first_frame
        for n in count(4):
            rows, columns = min(n // 2, layout.grid_h), min((n + 1) // 2, layout.grid_w)
            number = ceil(layout.grid_h / rows) * ceil(layout.grid_w / columns)
            if whole + frames * (layout.special + number) <= self.keep * layout.tokens or number == 1:
                return rows, columns

    def _blocks(
        self, layout: TokenLayout, is_destination: Tensor, copies: int, own: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (sources among `own`, None for all; their candidates), so few that the similarities stay small."""
        P, size = layout.tokens_per_frame, self.window or layout.frames
        for first in range(0, layout.frames, size):
            inside = is_destination[first * P : (first + size) * P]
            sources, candidates = ((x.nonzero()[:, 0] + first * P) for x in (~inside, inside))
            if self.first_frame and first:
                candidates = torch.cat([torch.arange(P), candidates])
            candidates = torch.cat([candidates, candidates[-1:].expand(-len(candidates) % _PART)])
            if own is not None:
                sources = sources[(sources >= own.start) & (sources < own.stop)]
            if len(sources):
                for block in sources.split(max(1, base.BLOCK_ELEMENTS // (copies * len(candidates)))):
                    yield block, candidates

    def _pairs(self, layout: TokenLayout) -> int:
        """How many similarities are computed, those with the repeated candidates included."""
        P, size = layout.tokens_per_frame, self.window or layout.frames
        cells = self._cell(layout)
        number = layout.special + ceil(layout.grid_h / cells[0]) * ceil(layout.grid_w / cells[1])
        pairs = 0
        for first in range(0, layout.frames, size):
            frames = min(size, layout.frames - first)
            plain = frames - (self.first_frame and first == 0)  # frames that hold sources
            pairs += plain * (P - number) * _PART * ceil((plain * number + self.first_frame * P) / _PART)
        return pairs


def _cells(layout: TokenLayout, cell: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First row and column of the cells of a grid, and their heights and widths (smaller at the border)."""
    sides = []
    for length, side in zip((layout.grid_h, layout.grid_w), cell, strict=True):
        start = torch.arange(0, length, side)
        sides.append((start, (length - start).clamp_max(side)))
    (row, height), (column, width) = sides
    return row, column, height, width


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """max(-1), values and first places: of parts first, since torch's maximum with its place is not vectorised."""
    parts = scores.unflatten(-1, (-1, _PART))
    best, part = parts.amax(-1).max(-1)
    inside = parts.take_along_dim(part[..., None, None], -2).squeeze(-2).argmax(-1)
    return best, part * _PART + inside


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _principal(
    features: list[Tensor], channels: int | None, seed: int, index: Tensor, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """The leading uncentred principal channels of the concatenated features: (B, h, N, c), float32 or better.

    Subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061) on a fixed sample of tokens, from a seeded start; in
    float64, so that rounding, which depends on how the tokens are shared out over ranks, does not reach the groups.
    """
    sizes, wide = [x.shape[-1] for x in features], torch.promote_types(features[0].dtype, torch.float32)
    if channels is None or channels >= sum(sizes):
        return torch.cat(features, -1).to(wide)
    index = index.to(features[0].device)
    sample = torch.cat([x.index_select(2, index) for x in features], -1).double()
    start = torch.randn(sum(sizes), channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = start.to(sample.device).expand(*sample.shape[:2], -1, -1)
    for _ in range(_STEPS):
        basis = torch.linalg.qr(total(sample.mT @ (sample @ basis))).Q
    basis = basis.to(wide)
    return sum(x.to(wide) @ part for x, part in zip(features, basis.split(sizes, -2), strict=True))


def _grouped(stand_in: Tensor, own: Tensor) -> Groups:
    """Groups from the token that each joins (..., N) and the tokens with a row of their own (..., M), ascending."""
    number = torch.full_like(stand_in, -1).scatter(
        -1, own, torch.arange(own.shape[-1], device=own.device).expand_as(own)
    )
    row = torch.where(number >= 0, number, number.gather(-1, stand_in))
    mass = torch.zeros_like(own).scatter_add(-1, row, torch.ones_like(row))
    return Groups(row, own, mass)


def spread(tokens: int, number: int) -> Tensor:
    """At most `number` distinct token indices, ascending, spread by the golden ratio: no beat with the frames."""
    if number >= tokens:
        return torch.arange(tokens)
    return ((torch.arange(number, dtype=torch.float64) * ((5**0.5 - 1) / 2)).frac() * tokens).long().unique()


def probes(rows: int) -> int:
    """How many queries fit the step length of `restore`."""
    return max(1, min(1024, rows // 16))


def restore(groups: Groups, q: Tensor, q_rows: Tensor, out: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Outputs of all queries from those of the rows, to first order: (B, H, N, D).

        out_i = out_g + lam (q_i - q_g) W,    g the row of i,    clamped to the range of the rows' outputs,

    W (D x D, per head) the ridge regression of the rows' outputs on their queries, weighted by mass; lam in [0, 1] the
    least-squares step on `probes(M)` queries whose outputs `attend(q_some)` against the rows' keys are computed. W
    estimates the mean derivative of the output, scale E[cov_A(k, v)], from differences between groups; lam is small
    where that says nothing about differences within one. Clamping only projects on where averages of values lie.
    """
    wide, whole = torch.promote_types(q.dtype, torch.float32), groups.whole
    weight, z, y = whole.mass.unsqueeze(-1).to(wide), q_rows.to(wide), out.to(wide)
    total = weight.sum(2, keepdim=True)
    z, y = z - (weight * z).sum(2, keepdim=True) / total, y - (weight * y).sum(2, keepdim=True) / total
    weighted = (weight * z).mT
    gram = weighted @ z
    ridge = (_RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(torch.finfo(wide).tiny)
    eye = torch.eye(q.shape[-1], dtype=wide, device=q.device)
    slope = torch.linalg.solve(gram + ridge[..., None, None] * eye, weighted @ y)

    some = whole.probes()
    query = groups.take(q, some)
    moved = (query.to(wide) - whole.unmerge(q_rows, some)) @ slope
    wanted = attend(query).to(wide) - whole.unmerge(out, some)
    energy = moved.square().sum((2, 3), keepdim=True)
    lam = ((moved * wanted).sum((2, 3), keepdim=True) / energy.where(energy > 0, 1)).clamp(0, 1)
    slope = lam * slope

    bounds = torch.cat([slope, out.amin(2, keepdim=True).to(wide), out.amax(2, keepdim=True).to(wide)], 2)
    slope, low, high = groups.all_heads(bounds).split([q.shape[-1], 1, 1], 2)
    low, high, q_rows, out = low.to(q.dtype), high.to(q.dtype), groups.fetch(q_rows), groups.fetch(out)
    size = max(1, base.BLOCK_ELEMENTS // (q.shape[0] * q.shape[1] * q.shape[3]))
    pieces = []
    for start in range(0, q.shape[2], size):
        block = slice(start, start + size)
        piece = groups.unmerge(out, block) + (q[:, :, block].to(wide) - groups.unmerge(q_rows, block)) @ slope
        pieces.append(piece.to(q.dtype).clamp(low, high))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def merge_workspace(queries: int, rows: int, arrays: int, D: int, H: int, *, itemsize: int = 4) -> float:
    """Bytes at the peak of `Groups.merge` of `arrays` arrays, one after another: rows done, sums in float32."""
    wide = max(itemsize, 4)
    cast = queries * wide if itemsize < wide else 0.0
    return D * H * ((arrays - 1) * rows * itemsize + cast + 2.0 * rows * wide + (rows * itemsize if cast else 0.0))


def restore_workspace(queries: int, rows: int, D: int, H: int, *, itemsize: int = 4) -> float:
    """Bytes that `restore` holds at its peak beyond its output: centred rows, and the tokens block by block."""
    wide, q = max(itemsize, 4), queries * D * H
    block = block_bytes(q)
    centred = ((3.0 + 2 * (itemsize < wide)) * rows + 8 * probes(rows)) * D * H * wide
    return centred + max((5 + (itemsize < wide)) * block, q * itemsize if block < 4 * q else 0.0)


def restore_cost(queries: int, rows: int, keys: int, D: int, H: int, *, itemsize: int = 4) -> Cost:
    """Cost of `restore`: the regression, the probes against `keys` keys, and one D x D product per query."""
    products = Cost(
        H * (4.0 * rows + 2.0 * (queries + probes(rows)) + D) * D * D, (3 * queries + 2 * rows) * H * D * itemsize
    )
    return products + attention_cost(probes(rows), keys, D, H, itemsize=itemsize)
