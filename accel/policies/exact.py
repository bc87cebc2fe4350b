"""Dense attention: the policy that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.layout import TokenLayout
from accel.policies.base import Context, Cost, Policy, attention_cost


@dataclass(frozen=True)
class Exact(Policy):
    """Every query attends to every key, by the call the model itself makes (bit-identical to the unpatched layer)."""

    name: ClassVar[str] = "exact"
    special_keys: ClassVar[Literal["all", "own frame"]] = "all"

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        return scaled_dot_product_attention(q, k, v, scale=scale)

    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        return attention_cost(layout.tokens, layout.tokens, D, H, itemsize=itemsize)

    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        """The fused kernel needs none."""
        return 0.0

    def keys_per_query(self, layout: TokenLayout) -> float:
        return float(layout.tokens)

    def describe(self) -> str:
        return "exact: all keys"

    @classmethod
    def examples(cls) -> tuple[Policy, ...]:
        return (cls(),)
