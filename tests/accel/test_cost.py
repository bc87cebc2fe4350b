"""The cost model against counted operations, and the calibration."""

import json
import time
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accel import cost as cost_module
from accel.cost import Device, model_cost, predict_seconds
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.checkpoint import random_model
from accel.models.config import PARITY_SMALL, TESTBED
from accel.policies import BlockSparse, Cost, Exact, Frame, Subsample
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


def test_launches_add_up_on_a_cpu_and_hide_behind_the_work_of_a_gpu():
    cpu, gpu = replace(DEVICE, launch=3.0), replace(DEVICE, launch=3.0, queued=True)
    cost = Cost(4e11)
    assert cpu.seconds(cost, start=3.0) == 7.0 and gpu.seconds(cost, start=3.0) == 5.0
    assert gpu.seconds(cost) == cpu.seconds(cost) == 4.0
    layout = TokenLayout(8, 4, 8, 8)
    plain, more = predict_seconds(TESTBED, layout, DEVICE), predict_seconds(TESTBED, layout, cpu)
    # 3 blocks of the encoder, 6 frame and 6 global ones, two dense heads of 3 each; the testbed's camera head has none
    assert more["total"] - plain["total"] == pytest.approx(3.0 * (3 + 6 + 6 + 6))
    chunked = predict_seconds(TESTBED, layout, cpu, frames_per_chunk=3)
    assert chunked["total"] - more["total"] == pytest.approx(3.0 * 2 * (3 + 6 + 6))
    with pytest.raises(AccelError, match="frames_per_chunk=0"):
        model_cost(TESTBED, layout, frames_per_chunk=0)


def test_a_shortcut_pays_its_overhead_once_per_layer():
    layout, device = TokenLayout(8, 4, 8, 8), replace(DEVICE, overhead=0.5)
    policies = (Exact(), Frame(), Frame(), Exact(), Exact(), Subsample(stride=4))
    with_it, without = (predict_seconds(TESTBED, layout, d, policies) for d in (device, DEVICE))
    assert with_it["global_attention"] - without["global_attention"] == pytest.approx(1.5)
    each = [device.attention_seconds(policy, layout, 32, 4) for policy in policies]
    assert with_it["global_attention"] == pytest.approx(sum(each))


def test_blocks_read_in_place_are_not_gathered():
    layout, policy = TokenLayout(64, 4, 8, 8), BlockSparse(density=0.25)
    seconds = [replace(DEVICE, queued=queued).attention_seconds(policy, layout, 32, 4) for queued in (False, True)]
    gathered = policy.gather_cost(layout, 32, 4)
    assert gathered.bytes > 0 == gathered.flops
    assert seconds[0] - seconds[1] == pytest.approx(gathered.bytes / DEVICE.bandwidth)
    assert BlockSparse(density=1.0).gather_cost(layout, 32, 4) == Cost()


def test_the_trunk_alone_is_the_whole_less_the_heads():
    layout = TokenLayout(8, 4, 8, 8)
    whole, trunk = (predict_seconds(TESTBED, layout, DEVICE, heads=heads) for heads in (True, False))
    assert trunk["heads"] == 0.0 and whole["total"] - whole["heads"] == pytest.approx(trunk["total"])


def test_a_layout_of_another_model_is_refused():
    with pytest.raises(AccelError, match="5 special tokens per frame, vggt has 4"):
        model_cost(TESTBED, TokenLayout(8, 5, 8, 8))


def test_calibration_is_quick_and_draws_nothing():
    state, start = torch.random.get_rng_state(), time.process_time()
    found = Device.measure("cpu", config=TESTBED)
    assert time.process_time() - start < 6  # 3 s were asked for, on at least two threads these are cpu seconds
    assert torch.equal(state, torch.random.get_rng_state())
    assert min(found.linear, found.attention, found.convolution, found.bandwidth) > 1e8 and found.itemsize == 4
    assert 0 < found.launch < 0.1 and 0 < found.overhead < 1 and not found.queued
    assert Device.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_each_rate_is_its_work_over_its_seconds(monkeypatch):
    """Known seconds in the place of the clock, in the order in which the kernels are timed."""
    seconds = iter([0.5, 0.25, 4.0, 0.75, 0.125, 0.0625])  # copy, attention, block, block on 8 tokens, heads, policy
    monkeypatch.setattr(cost_module, "_time", lambda call, device: [call(), next(seconds)][1])
    found = Device.measure("cpu", config=TESTBED, tokens=512)
    C, features, side = TESTBED.embed_dim, TESTBED.dpt_features, max(16, TESTBED.image_size // 16)
    each = (4.0 - 0.25 - 0.75) / (512 - 8)
    assert TESTBED.mlp_ratio == 4 and found.linear == pytest.approx(24 * C**2 / each)  # q, k, v, projection, 2 x 4 C^2
    assert found.bandwidth == pytest.approx(3 * 2**22 * 4 / 0.5)  # two arrays read, one written, 4 bytes each
    assert found.attention == pytest.approx(2 * 2 * 512**2 * C / 0.25)
    assert found.convolution == pytest.approx(2 * 2 * 9 * features**2 * (side**2 + (2 * side) ** 2) / 0.125)
    assert found.overhead == 0.0625
    assert found.launch == pytest.approx(0.75 - 8 * each - 12 * C**2 * 4 / found.bandwidth)
    assert next(seconds, None) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("linear", value) for value in ("abc", None, True, [1.0], float("inf"), 10**400)),
        *(("itemsize", value) for value in (2.5, True, "2")),
        *(("queued", value) for value in ("no", 1, None)),
        *(("name", value) for value in (None, 3)),
        ("overhead", -1.0),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(field, value):
    data = json.loads(json.dumps(DEVICE.to_dict())) | {field: value}
    with pytest.raises(AccelError, match=rf"Device\.{field}="):
        Device.from_dict(data)


def test_a_bad_device_is_refused():
    with pytest.raises(AccelError, match="attention=0"):
        Device("bad", 1.0, 0.0, 1.0, 1.0)
    with pytest.raises(AccelError, match="needs the fields"):
        Device.from_dict({"name": "x"})
    with pytest.raises(AccelError, match="linear=nan"):
        Device("bad", float("nan"), 1.0, 1.0, 1.0)


def test_a_device_of_an_older_schedule_is_read():
    old = {"name": "x", "linear": 1.0, "attention": 2.0, "convolution": 3.0, "bandwidth": 4.0, "itemsize": 2}
    found = Device.from_dict(old)
    assert found == Device("x", 1.0, 2.0, 3.0, 4.0, 2) and found.launch == found.overhead == 0.0 and not found.queued
    with pytest.raises(AccelError, match="speed"):
        Device.from_dict(old | {"speed": 1.0})
