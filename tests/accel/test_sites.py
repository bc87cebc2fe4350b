"""Which layers are sites in each family, what is left alone, and the layout of the tokens."""

import pytest
import torch
from torch import nn

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import VGGTConfig
from accel.models.vggt import VGGT
from accel.sites import FAMILIES, layout_of, left_exact, sites
from tests.accel.stand_ins import LIKE

GLOBAL = {
    "VGGT": [f"aggregator.global_blocks.{i}.attn" for i in range(4)],
    "Pi3": [f"decoder.{i}.attn" for i in (1, 3, 5)],
    "Pi3X": [f"decoder.{i}.attn" for i in (1, 3, 5)],
    "VGGT-Omega": [f"aggregator.inter_frame_blocks.{i}.attn" for i in (0, 1, 3)],
}
LEFT = {
    "Pi3X": ("pose_inject_blk.0.attn", "pose_inject_blk.1.attn"),
    "VGGT-Omega": ("aggregator.inter_frame_blocks.2.attn",),
}
SPECIAL = {"VGGT": 3, "Pi3": 3, "Pi3X": 3, "VGGT-Omega": 4}


def build(name):
    return LIKE[name](torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LIKE)
def test_the_sites_of_each_family(name):
    model = build(name)
    found = sites(model)
    assert [site.name for site in found] == GLOBAL[name]
    assert [site.layer for site in found] == list(range(len(found)))
    assert all(model.get_submodule(site.name) is site.module for site in found)
    assert {site.special for site in found} == {SPECIAL[name]}
    assert left_exact(model) == LEFT.get(name, ())


@pytest.mark.parametrize("name", LIKE)
def test_the_layout_is_that_of_the_tokens_which_reach_the_sites(name):
    model, images = build(name), torch.rand(1, 3, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    seen = set()
    for site in sites(model):
        site.module.register_forward_pre_hook(lambda m, args: seen.add(args[0].shape[1]))
    with torch.no_grad():
        model(images)
    layout = layout_of(model, images)
    assert layout == layout_of(model, images[0]) == TokenLayout(3, SPECIAL[name], 3, 4)
    assert seen == {layout.tokens}


def test_sites_and_layout_of_our_vggt():
    vggt = VGGT(
        VGGTConfig(image_size=28, embed_dim=32, depth=4, num_heads=2, vit_depth=1, vit_heads=2, dpt_layers=(0, 1, 2, 3))
    )
    images = torch.zeros(1, 2, 3, 28, 42)
    assert [site.name for site in sites(vggt)] == GLOBAL["VGGT"]
    assert layout_of(vggt, images) == vggt.layout(images)
    assert left_exact(vggt) == ()


def test_foreign_models_are_refused_and_the_known_ones_listed():
    with pytest.raises(AccelError, match=r"class torch\.nn\.modules\.linear\.Linear; known are VGGT .*Pi3.*Omega"):
        sites(nn.Linear(2, 2))
    other = nn.Module()  # a decoder, but not Pi3's
    other.decoder = nn.ModuleList([nn.Module(), nn.Module()])
    with pytest.raises(AccelError, match="no global-attention layers"):
        layout_of(other, torch.zeros(1, 2, 3, 12, 16))
    assert set(FAMILIES) == {"vggt", "pi3", "vggt-omega"}


def test_images_of_a_wrong_size_and_a_model_without_its_numbers_are_refused():
    model = build("VGGT")
    with pytest.raises(AccelError, match="13x16 pixels; both sides must be multiples of 4"):
        layout_of(model, torch.zeros(1, 2, 3, 13, 16))
    with pytest.raises(AccelError, match=r"shape \(2, 12, 16\)"):
        layout_of(model, torch.zeros(2, 12, 16))
    del model.aggregator.patch_start_idx
    with pytest.raises(AccelError, match=r"no number of special tokens: aggregator\.patch_start_idx or config"):
        sites(model)
