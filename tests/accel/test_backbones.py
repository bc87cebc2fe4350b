"""The descriptions of the three backbones against operations counted on their public code."""

import pytest

from accel.backbones import backbone, backbones
from accel.cost import model_cost
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import TESTBED, VGGT_1B
from accel.policies import Exact, Frame
from tests.tolerances import MODEL_FLOPS, PUBLIC_CODE_FLOPS


def test_dense_attention_of_a_thousand_frames():
    """4 N^2 C in each of 24 layers at 1,041,000 tokens: 106.5e15, as FlashVGGT prints (105.6e15 there)."""
    cost = model_cost("vggt", backbone("vggt").layout(1000, 392, 518))
    assert sum(layer.flops for layer in cost.global_attention) == pytest.approx(106.53e15, rel=1e-3)


def test_operations_of_pi3_are_those_of_the_public_code():
    """FlopCounterMode on yyfz/Pi3 at 9fa3ddb (full size, fake tensors, math attention), 3 frames of 84x112 pixels."""
    net = backbone("pi3")
    cost = model_cost(net, net.layout(3, 84, 112))
    assert cost.patch_embed.flops == 97_034_600_448
    assert cost.heads.flops == pytest.approx(
        21_179_756_544 * 2 + 21_013_032_960 + 173_408_256 + 57_802_752 + 456_167_748, rel=PUBLIC_CODE_FLOPS
    )
    assert cost.total.flops == pytest.approx(307_629_828_420, rel=MODEL_FLOPS)


def test_operations_of_omega_are_those_of_the_public_code():
    """FlopCounterMode on facebookresearch/vggt-omega at 39a0cb8, 3 frames of 96x128 pixels; its count leaves out the
    fused attention of the CPU."""
    net = backbone("vggt-omega")
    layout = net.layout(3, 96, 128)
    cost = model_cost(net, layout)
    assert cost.head_costs.convolution.flops == 22_960_668_672
    attention = cost.frame_attention + cost.register_attention + cost.head_costs.attention
    attention = attention.flops + sum(layer.flops for layer in cost.global_attention)
    attention += 24 * 3 * 4 * (5 + 48) ** 2 * 1024  # of the image encoder
    assert cost.total.flops - attention == pytest.approx(357_200_615_424, rel=MODEL_FLOPS)


def test_omega_puts_policies_on_its_global_blocks_only():
    net = backbone("vggt-omega")
    layout = net.layout(8, 384, 512)
    assert layout == TokenLayout(8, 17, 24, 32)
    dense, frames = model_cost(net, layout), model_cost(net, layout, (Frame(),) * 19)
    assert len(dense.global_attention) == 19 and frames.register_attention == dense.register_attention
    assert dense.register_attention.flops == 5 * 4 * (8 * 17) ** 2 * 1024
    with pytest.raises(AccelError, match="24 policies for 19"):
        model_cost(net, layout, (Exact(),) * 24)


def test_names_and_sizes():
    assert backbone("vggt") == backbone(VGGT_1B) == backbones()["vggt"]
    assert backbone(TESTBED).head_dim == 32 and backbone(backbone("pi3")) is not None
    with pytest.raises(AccelError, match="'dust3r' is no known backbone"):
        backbone("dust3r")
    with pytest.raises(AccelError, match="use for example 392x518"):
        backbone("vggt").layout(4, 400, 520)


def test_chunks_of_frames_multiply_the_launches_of_dense_heads():
    few, many = (model_cost("vggt", backbone("vggt").layout(n, 392, 518)).blocks["dense_heads"] for n in (8, 9))
    assert (few, many) == (6, 12)
