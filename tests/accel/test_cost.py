"""The cost model against counted operations, and the calibration."""

import json
import time
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accel.cost import Device, model_cost
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.checkpoint import random_model
from accel.models.config import PARITY_SMALL, TESTBED
from accel.policies import Cost, Exact, Frame, Subsample
from tests.tolerances import MODEL_FLOPS

DEVICE = Device("test", linear=1e11, attention=5e10, convolution=2e10, bandwidth=1e10)


PATCH_STEM = replace(
    PARITY_SMALL, embed_dim=32, num_heads=2, vit_depth=1, vit_heads=2, vit_registers=2, camera_heads=4, dpt_features=16,
    dpt_channels=(8, 16, 32, 32),
)  # fmt: skip


@pytest.mark.parametrize(("config", "shape"), [(TESTBED, (2, 64, 48)), (PATCH_STEM, (1, 42, 56))])
def test_operations_are_those_counted(config, shape):
    frames, height, width = shape
    model = random_model(config, torch.Generator().manual_seed(0))
    images = torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(1))
    cost = model_cost(config, model.layout(images))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(images)
    assert cost.total.flops == pytest.approx(counter.get_total_flops(), rel=MODEL_FLOPS)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    heads = sum(counts[f"VGGT.{name}_head"] for name in ("camera", "depth", "point"))
    assert cost.heads.flops == pytest.approx(heads, rel=MODEL_FLOPS)
    assert cost.patch_embed.flops == pytest.approx(counts["VGGT.aggregator.patch_embed"], rel=MODEL_FLOPS)


def test_policies_change_their_layer_only():
    layout = TokenLayout(8, 4, 8, 8)
    dense = model_cost(TESTBED, layout)
    mixed = model_cost(TESTBED, layout, (Exact(), Frame(), Subsample(stride=4), Exact(), Exact(), Exact()))
    assert mixed.global_attention[0] == dense.global_attention[0] == Exact().cost(layout, 32, 4)
    assert mixed.global_attention[1] == Frame().cost(layout, 32, 4)
    assert mixed.frame_linear == dense.frame_linear and mixed.heads == dense.heads
    assert mixed.seconds(DEVICE)["total"] < dense.seconds(DEVICE)["total"]
    with pytest.raises(AccelError, match="2 policies for 6"):
        model_cost(TESTBED, layout, (Exact(), Exact()))


def test_seconds_are_operations_over_rate_plus_bytes_over_bandwidth():
    assert DEVICE.seconds(Cost(5e10, 2e10), "attention") == pytest.approx(1 + 2)
    seconds = model_cost(TESTBED, TokenLayout(8, 4, 8, 8)).seconds(DEVICE)
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"])


def test_attention_grows_with_the_square_of_the_frames():
    small, large = (model_cost(TESTBED, TokenLayout(s, 4, 8, 8)) for s in (10, 20))
    assert large.global_attention[0].flops == 4 * small.global_attention[0].flops
    assert large.frame_attention.flops == 2 * small.frame_attention.flops


def test_calibration_is_quick_and_draws_nothing():
    state, start = torch.random.get_rng_state(), time.process_time()
    found = Device.measure("cpu", config=TESTBED)
    assert time.process_time() - start < 6  # 3 s were asked for, on at least two threads these are cpu seconds
    assert torch.equal(state, torch.random.get_rng_state())
    assert min(found.linear, found.attention, found.convolution, found.bandwidth) > 1e8 and found.itemsize == 4
    assert Device.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_bad_device_is_refused():
    with pytest.raises(AccelError, match="attention=0"):
        Device("bad", 1.0, 0.0, 1.0, 1.0)
    with pytest.raises(AccelError, match="exactly the fields"):
        Device.from_dict({"name": "x"})
