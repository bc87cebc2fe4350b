"""Where a model does global attention and how its tokens lie: one entry per family of models, in a table.

A model is recognised by its attributes, so that nothing is imported from it and subclasses are found too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from accel.errors import AccelError
from accel.layout import TokenLayout


@dataclass(frozen=True)
class Site:
    """One global-attention layer: its index, its name in the model, the module that calls the attention, and how many
    special tokens each frame has there."""

    layer: int
    name: str
    module: nn.Module
    special: int


@dataclass(frozen=True)
class Family:
    """What is known of one family of models.

    title: for messages. global_attention(model) -> {name: module} in the order of the layers, empty for a foreign
    model. left_exact(model) -> names of the inter-frame attention that is no site. special, patch_size: dotted names of
    the attributes that hold them, the first present counts.
    """

    title: str
    global_attention: Callable[[nn.Module], dict[str, nn.Module]]
    special: tuple[str, ...]
    patch_size: tuple[str, ...]
    left_exact: Callable[[nn.Module], tuple[str, ...]] = lambda model: ()


def _attribute(model: nn.Module, *names: str) -> object:
    """The first of these dotted attributes that the model has, else None."""
    for name in names:
        value: object = model
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            return value
    return None


def _vggt(model: nn.Module) -> dict[str, nn.Module]:
    """Every `aggregator.global_blocks[i].attn`."""
    blocks = _attribute(model, "aggregator.global_blocks") or ()
    return {f"aggregator.global_blocks.{i}.attn": b.attn for i, b in enumerate(blocks) if hasattr(b, "attn")}


def _pi3(model: nn.Module) -> dict[str, nn.Module]:
    """The odd blocks of `decoder`; the even ones attend within frames."""
    if _attribute(model, "register_token") is None or _attribute(model, "position_getter") is None:
        return {}
    blocks = _attribute(model, "decoder")
    if not isinstance(blocks, nn.ModuleList):
        return {}
    return {f"decoder.{i}.attn": b.attn for i, b in enumerate(blocks) if i % 2 and hasattr(b, "attn")}


def _pi3_poses(model: nn.Module) -> tuple[str, ...]:
    """Pi3X's injection of given poses: attention over the patches alone, with projective positions and a mask."""
    return tuple(f"pose_inject_blk.{i}.attn" for i in range(len(_attribute(model, "pose_inject_blk") or ())))


def _omega(model: nn.Module, kind: str = "global") -> dict[str, nn.Module]:
    """The inter-frame blocks of one kind; those of kind "register" see the special tokens alone."""
    kinds = _attribute(model, "aggregator.inter_frame_attention_types") or ()
    blocks = _attribute(model, "aggregator.inter_frame_blocks") or ()
    pairs = enumerate(zip(blocks, kinds, strict=True))
    return {f"aggregator.inter_frame_blocks.{i}.attn": block.attn for i, (block, k) in pairs if k == kind}


FAMILIES: MappingProxyType[str, Family] = MappingProxyType(
    {
        "vggt": Family(
            "VGGT (official and accel's): aggregator.global_blocks[i].attn",
            _vggt,
            special=("aggregator.patch_start_idx", "config.special_tokens"),
            patch_size=("aggregator.patch_size", "config.patch_size"),
        ),
        "pi3": Family(
            "Pi3 and Pi3X: decoder[i].attn, odd i",
            _pi3,
            special=("patch_start_idx",),
            patch_size=("patch_size",),
            left_exact=_pi3_poses,
        ),
        "vggt-omega": Family(
            "VGGT-Omega: aggregator.inter_frame_blocks[i].attn of kind 'global'",
            _omega,
            special=("aggregator.patch_token_start",),
            patch_size=("aggregator.patch_size",),
            left_exact=lambda model: tuple(_omega(model, "register")),
        ),
    }
)
"""The models that `sites`, `layout_of` and `patch` know."""


def _family(model: nn.Module) -> tuple[Family, dict[str, nn.Module]]:
    for family in FAMILIES.values():
        if found := family.global_attention(model):
            return family, found
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    known = "; ".join(family.title for family in FAMILIES.values())
    raise AccelError(
        f"no global-attention layers known in a model of class {kind}; known are {known}. Give the whole model "
        f"(unwrapped), or add a Family to accel.sites.FAMILIES"
    )


def _number(model: nn.Module, names: tuple[str, ...], what: str) -> int:
    value = _attribute(model, *names)
    if isinstance(value, (tuple, list)) and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise AccelError(f"{type(model).__qualname__} has no {what}: {' or '.join(names)} is {value!r}, not an integer")
    return value


def sites(model: nn.Module) -> list[Site]:
    """The global-attention sites of a known model, in the order in which a forward meets them."""
    family, found = _family(model)
    special = _number(model, family.special, "number of special tokens")
    return [Site(layer, name, module, special) for layer, (name, module) in enumerate(found.items())]


def left_exact(model: nn.Module) -> tuple[str, ...]:
    """Names of the attention between frames that is no site and always stays as the model has it.

    VGGT-Omega's register blocks (special tokens only, 17 per frame: nothing to save) and Pi3X's pose injection.
    """
    return _family(model)[0].left_exact(model)


def layout_of(model: nn.Module, images: Tensor) -> TokenLayout:
    """The token layout of images (B, S, 3, H, W) or (S, 3, H, W) in a known model, for `patch(model, schedule)`."""
    if images.ndim not in (4, 5) or images.shape[-3] != 3:
        raise AccelError(f"images have shape {tuple(images.shape)}; give (batch, frames, 3, height, width)")
    family, _ = _family(model)
    special = _number(model, family.special, "number of special tokens")
    size = _number(model, family.patch_size, "patch size")
    frames, _, height, width = images.shape[-4:]
    if height % size or width % size:
        raise AccelError(f"images are {height}x{width} pixels; both sides must be multiples of {size}")
    return TokenLayout(frames, special, height // size, width // size)
