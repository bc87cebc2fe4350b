"""What an attention policy is: a lighter measure of keys for one global-attention layer, with its price."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from accel.attend import without_autocast
from accel.errors import AccelError
from accel.layout import TokenLayout


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and bytes moved to and from memory by one layer; costs add and scale."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times)

    __rmul__ = __mul__


def attention_cost(queries: float, keys: float, D: int, H: int, *, itemsize: int = 4) -> Cost:
    """Cost of fused attention: 4*Nq*Nk*D*H operations (q.k and A.v), and q, k, v read and the output written once."""
    return Cost(4.0 * queries * keys * D * H, 2.0 * (queries + keys) * D * H * itemsize)


BLOCK_ELEMENTS = 2**24
"""Elements of a temporary that a policy holds at once: it works in blocks of queries, so that memory stays O(N D)."""


def block_bytes(elements: float) -> float:
    """Bytes in float32 of a temporary of so many elements that is held in blocks."""
    return 4.0 * min(BLOCK_ELEMENTS, elements)


@dataclass
class Context:
    """What a policy may know of a layer beyond q, k, v, layout; the default is a layer on its own.

    layer: its index. tokens (B, N, C): the input of the attention module (after its norm), None where unknown.
    memory: shared by the layers of one forward, empty at its first, for what a policy reuses from layer to layer.
    """

    layer: int = 0
    tokens: Tensor | None = None
    memory: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy(ABC):
    """How one global-attention layer computes its output; a frozen dataclass whose fields are JSON values.

    A subclass sets `name` and `special_keys`, and supplies `_attend`, `cost`, `workspace`, `keys_per_query`,
    `describe`, `examples`, and `check` where it cannot serve every layout.
    """

    name: ClassVar[str]
    """The value of "policy" in JSON; unique."""
    special_keys: ClassVar[Literal["all", "own frame"]]
    """The promise about special tokens: every query sees those of all frames, or those of its own frame only."""

    def check(self, layout: TokenLayout) -> None:  # noqa: B027  (a policy that serves every layout keeps this one)
        """Raise AccelError when the policy cannot be applied to this layout."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: TokenLayout,
        *,
        scale: float | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """The layer's attention output, (B, H, N, D), for q, k, v of that shape; scale defaults to D**-0.5.

        Under autocast q, k, v are cast to its dtype first, as F.scaled_dot_product_attention does.
        """
        if not (q.ndim == 4 and q.shape == k.shape == v.shape):
            raise AccelError(
                f"policy {self.name!r} needs q, k, v of one shape (B, H, N, D), got "
                f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
            )
        layout.check(q.shape[2])
        self.check(layout)
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
        with without_autocast(q):
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            return self._attend(q, k, v, layout, scale, Context() if context is None else context)

    @abstractmethod
    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, scale: float, context: Context) -> Tensor:
        """`attend` after the checks."""

    @abstractmethod
    def cost(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> Cost:
        """Cost of `attend` for one layer at batch 1; itemsize in bytes per element of q."""

    @abstractmethod
    def workspace(self, layout: TokenLayout, D: int, H: int, *, itemsize: int = 4) -> float:
        """Bytes that `attend` holds at its peak at batch 1, beyond q, k, v, its output and one number per query."""

    @abstractmethod
    def keys_per_query(self, layout: TokenLayout) -> float:
        """Keys that enter the softmax of a query, averaged over the queries."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the schedule's table."""

    @classmethod
    @abstractmethod
    def examples(cls) -> tuple[Policy, ...]:
        """Instances that cover every option; the test battery runs on each."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary: {"policy": name, field: value, ...}; `policy_from_dict` inverts it."""
        return {"policy": self.name} | {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}


def _to_json(value: Any) -> Any:
    """A field's value as JSON: tuples are lists, and a policy that a policy holds is its dictionary."""
    if isinstance(value, tuple):
        return [_to_json(x) for x in value]
    return value.to_dict() if isinstance(value, Policy) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(x) for x in value)
    return policy_from_dict(value) if isinstance(value, Mapping) else value


def check_flags(name: str, **flags: object) -> None:
    """AccelError unless each is a bool: the string "false" of a JSON file would count as true."""
    for field_name, value in flags.items():
        if not isinstance(value, bool):
            raise AccelError(f"{name} {field_name}={value!r} must be true or false")


def registry() -> dict[str, type[Policy]]:
    """Every policy class that has been imported, by name, sorted; importing `accel.policies` imports ours."""
    found: dict[str, type[Policy]] = {}
    open_classes: list[type[Policy]] = [Policy]
    while open_classes:
        for cls in open_classes.pop().__subclasses__():
            open_classes.append(cls)
            if "name" in vars(cls):
                if found.setdefault(cls.name, cls) is not cls:
                    raise AccelError(f"two policies are named {cls.name!r}: {found[cls.name]} and {cls}; rename one")
    return dict(sorted(found.items()))


def policy_from_dict(data: Mapping[str, Any]) -> Policy:
    """The policy that `Policy.to_dict` wrote; fields left out take their defaults."""
    known = registry()
    name = data.get("policy") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or name not in known:
        raise AccelError(f'"policy": {name!r} is not one of {list(known)} in {data!r}')
    cls = known[name]
    names = [field.name for field in fields(cls) if field.init]
    unknown = sorted(set(data) - {"policy", *names})
    if unknown:
        raise AccelError(f"policy {name!r} has no field {', '.join(map(repr, unknown))}; its fields are {names}")
    return cls(**{key: _from_json(x) for key, x in data.items() if key != "policy"})
