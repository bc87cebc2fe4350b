"""Where a model does global attention: one small function per family of models, in a table."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from accel.errors import AccelError


@dataclass(frozen=True)
class Site:
    """One global-attention layer: its index, its name in the model, and the module that calls the attention."""

    layer: int
    name: str
    module: nn.Module


def _alternating(model: nn.Module) -> dict[str, nn.Module]:
    """VGGT, ours and the official one: `aggregator.global_blocks[i].attn`."""
    blocks = getattr(getattr(model, "aggregator", None), "global_blocks", ())
    return {f"aggregator.global_blocks.{i}.attn": b.attn for i, b in enumerate(blocks) if hasattr(b, "attn")}


FAMILIES: MappingProxyType[str, Callable[[nn.Module], dict[str, nn.Module]]] = MappingProxyType({"vggt": _alternating})
"""Family -> function(model) -> {name: attention module} in the order of the layers, empty for a foreign model."""


def sites(model: nn.Module) -> list[Site]:
    """The global-attention sites of a known model, in the order in which a forward meets them."""
    for find in FAMILIES.values():
        if found := find(model):
            return [Site(layer, name, module) for layer, (name, module) in enumerate(found.items())]
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise AccelError(
        f"no global-attention layers known in a model of class {kind}; give a model with "
        f"aggregator.global_blocks[i].attn, or add a function for it to accel.sites.FAMILIES"
    )
