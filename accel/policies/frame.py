"""Frame attention: the global layer, with its own weights, inside each frame (AVGGT's first step, arXiv 2512.02541)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.layout import TokenLayout
from accel.policies.base import Context, Cost, Policy, attention_cost


@dataclass(frozen=True)
class Frame(Policy):
    """A query sees the tokens of its own frame, specials included: the block-diagonal part of A, renormalised.

        out_i = sum_{j in frame(i)} exp(s q_i.k_j) v_j / sum_{j in frame(i)} exp(s q_i.k_j)

    Exact for one frame. A reshape, no gather: the frame becomes a batch dimension (a view for batch 1).
    """

    name: ClassVar[str] = "frame"
    special_keys: ClassVar[Literal["all", "own frame"]] = "own frame"

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        B, H, N, D = q.shape
        S, P = layout.frames, layout.tokens_per_frame
        split = [t.reshape(B, H, S, P, D).transpose(1, 2).reshape(B * S, H, P, D) for t in (q, k, v)]
        out = scaled_dot_product_attention(*split, scale=scale)
        return out.reshape(B, S, H, P, D).transpose(1, 2).reshape(B, H, N, D)

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        P = layout.tokens_per_frame
        return layout.frames * attention_cost(P, P, D, H, itemsize=itemsize)

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        """Frames are a dimension of the same arrays."""
        return 0.0

    def keys_per_query(self, layout: TokenLayout) -> float:
        return float(layout.tokens_per_frame)

    def describe(self) -> str:
        return "frame: the query's own frame"

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (cls(),)
