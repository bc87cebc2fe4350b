"""The memory model against a count of the program, its bounds, and what it says when a scene does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from accel import memory as memory_module
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.memory import (
    allowance,
    available_bytes,
    default_chunk,
    fits,
    frames_that_fit,
    gib,
    largest,
    peak_memory,
    too_many,
    within,
)
from accel.models import VGGT_1B
from accel.models.config import PARITY_SMALL, TESTBED
from accel.policies import Exact, Merge, Subsample
from experiments.live_bytes import count_forward
from tests.tolerances import MEMORY_MODEL

SHALLOW = replace(PARITY_SMALL, vit_depth=1)
TRUNK = replace(
    TESTBED, image_size=32, patch_size=4, vit_depth=1, dpt_features=8, dpt_channels=(4, 4, 4, 4), dpt_hidden=4
)
CPU = torch.device("cpu")
DTYPES = {4: torch.float32, 2: torch.bfloat16}
CASES = [
    (TESTBED, TokenLayout(6, 4, 8, 8), None, 4),
    (TESTBED, TokenLayout(16, 4, 6, 8), 2, 2),
    (TESTBED, TokenLayout(31, 4, 8, 8), 16, 4),
    (SHALLOW, TokenLayout(1, 5, 4, 5), None, 4),
    (SHALLOW, TokenLayout(8, 5, 4, 5), 3, 2),
    (TRUNK, TokenLayout(30, 4, 8, 8), 1, 4),
    (TRUNK, TokenLayout(30, 4, 8, 8), 2, 2),
    (TRUNK, TokenLayout(30, 4, 8, 8), 5, 4),
    (TRUNK, TokenLayout(9, 4, 8, 8), 8, 4),
    (TRUNK, TokenLayout(9, 4, 8, 8), 4, 2),
    (TRUNK, TokenLayout(6, 4, 8, 8), None, 4),
]
PHOTOGRAPHS = TokenLayout(1000, 5, 28, 37)


@pytest.mark.parametrize(("config", "layout", "chunk", "itemsize"), CASES)
def test_the_model_is_the_count_of_the_program(config, layout, chunk, itemsize):
    counted = count_forward(config, layout, frames_per_chunk=chunk, dtype=DTYPES[itemsize], fake=False)
    found = peak_memory(config, layout, frames_per_chunk=chunk, itemsize=itemsize)
    assert (found.weights, found.images) == (counted["weights"], counted["images"])
    held = found.weights + found.images
    assert found.peak - held == pytest.approx(counted["peak"] - held, rel=MEMORY_MODEL)


def test_the_cases_have_their_peaks_in_different_stages():
    stages = {peak_memory(c, x, frames_per_chunk=f, itemsize=i).stage for c, x, f, i in CASES}
    assert stages >= {"global attention", "blocks", "dense heads"}


def test_nothing_of_the_size_of_the_attention_matrix_is_counted():
    layout = TokenLayout(12, 4, 8, 8)
    found = count_forward(TRUNK, layout, frames_per_chunk=6)
    assert found["largest"] == 2 * layout.tokens * TRUNK.embed_dim * 4 < layout.tokens**2 * TRUNK.num_heads


def test_the_counter_sees_a_waste():
    def twice(model, images):
        kept = model.aggregator(images, frames_per_chunk=2)
        held = {layer: x.clone() for layer, x in kept.items()}
        return model.dense(kept, *images.shape[-2:]), held

    layout = TokenLayout(8, 4, 8, 8)
    plain = count_forward(TESTBED, layout, frames_per_chunk=2, fake=False)["peak"]
    more = count_forward(TESTBED, layout, frames_per_chunk=2, fake=False, forward=twice)["peak"]
    assert more - plain == pytest.approx(peak_memory(TESTBED, layout, frames_per_chunk=2).kept, rel=MEMORY_MODEL)


def test_a_thousand_photographs_stay_below_sixty_gigabytes():
    found = peak_memory(VGGT_1B, PHOTOGRAPHS, itemsize=2)
    assert found.peak <= 60e9 and found.stage == "global attention"
    assert found.kept == 8 * found.stream == 8 * PHOTOGRAPHS.tokens * 1024 * 2


def test_the_estimate_is_near_the_measured_resident_memory():
    path = Path(__file__).parents[2] / "experiments" / "results" / "peak_memory.json"
    measured = json.loads(path.read_text())
    _, frames, _, height, width = measured["images"]
    found = peak_memory(VGGT_1B, TokenLayout(frames, 5, height // 14, width // 14))
    assert 1 / 1.5 < found.peak / 1e9 / measured["peak_gb"] < 1.5


def test_a_policy_adds_its_workspace_at_its_own_layer():
    layout, policies = TokenLayout(20, 4, 8, 8), [Exact()] * 6
    policies[2] = Merge(keep=0.5)
    plain, found = (peak_memory(TESTBED, layout, p, itemsize=2) for p in (None, policies))
    more = [b - a for a, b in zip(plain.layers, found.layers, strict=True)]
    extra = policies[2].workspace(layout, 32, 4, itemsize=2)
    assert extra > 0 and more == pytest.approx([0, 0, extra, 0, 0, 0])
    with pytest.raises(AccelError, match="5 policies for 6 global layers"):
        peak_memory(TESTBED, layout, policies[:5])


@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_frames_that_fit_are_the_most(itemsize):
    memory = 20e9
    count = frames_that_fit(VGGT_1B, PHOTOGRAPHS, memory, itemsize=itemsize)
    chosen = {"frames_per_chunk": 1, "itemsize": itemsize}
    assert fits(VGGT_1B, replace(PHOTOGRAPHS, frames=count), memory, **chosen)
    assert not fits(VGGT_1B, replace(PHOTOGRAPHS, frames=count + 1), memory, **chosen)
    assert f"give --frames {count}" in too_many(VGGT_1B, PHOTOGRAPHS, memory, itemsize=itemsize)


def test_what_would_fit_is_said():
    half = peak_memory(VGGT_1B, PHOTOGRAPHS, frames_per_chunk=1, itemsize=2).peak
    text = too_many(VGGT_1B, PHOTOGRAPHS, 1.01 * half, itemsize=4)
    assert "give --dtype bfloat16" in text and gib(half) in text
    one, two = (
        peak_memory(VGGT_1B, replace(PHOTOGRAPHS, frames=S), frames_per_chunk=1, itemsize=2).peak for S in (1, 2)
    )
    for memory, itemsize in ((1e9, 2), ((one + two) / 2, 2), ((one + two) / 2, 4)):
        text = too_many(VGGT_1B, PHOTOGRAPHS, memory, itemsize=itemsize)
        assert "not even two frames would fit" in text and "--frames" not in text
    few = too_many(VGGT_1B, PHOTOGRAPHS, 20e9, itemsize=4)
    assert f"({frames_that_fit(VGGT_1B, PHOTOGRAPHS, 20e9, itemsize=2)} with --dtype bfloat16)" in few


def test_what_is_held_grows_with_the_frames_and_the_figure_given_is_shown():
    layout, at = TokenLayout(2000, 4, 8, 8), {"frames_per_chunk": 1}
    memory, held, spared = allowance(150e6, TESTBED, layout, CPU)
    outputs = peak_memory(TESTBED, layout, **at).outputs / layout.frames
    assert (memory, held, spared) == (150e6, 3 * outputs, 2 * outputs)
    count = frames_that_fit(TESTBED, layout, memory, held=held)

    def needed(frames, beside):
        return peak_memory(TESTBED, replace(layout, frames=frames), **at).peak + beside * frames

    assert needed(count, held) <= memory < needed(count + 1, held)
    text = too_many(TESTBED, layout, memory, held=held, spared=spared)
    assert f"need about {gib(needed(2000, held))} in chunks" in text and f"and {gib(memory)} may be used" in text
    assert f"give --frames {count}, so many" in text
    assert f"{frames_that_fit(TESTBED, layout, memory, held=held - spared)} with --no-dense" in text
    assert "--no-dense" not in too_many(TESTBED, layout, memory, held=held)
    less = needed(2000, held - spared)
    assert f"give --no-dense, with which they need {gib(less)}" in too_many(
        TESTBED, layout, 1.001 * less, held=held, spared=spared
    )


def test_a_chunk_leaves_room_for_what_is_held():
    layout, held = TokenLayout(64, 4, 8, 8), 1e5
    needed = {f: peak_memory(TESTBED, layout, frames_per_chunk=f).peak + 64 * held for f in (64, 32)}
    assert within(needed[64], TESTBED, layout, (Exact(),), 4, held)[0] == 64
    chunk, _, why = within(needed[64] - 1, TESTBED, layout, (Exact(),), 4, held)
    assert chunk == 32 and f"64 would need {gib(needed[64])} of {gib(needed[64] - 1)}" in why
    layout, options = replace(layout, frames=400), (Exact(), Merge(keep=0.5))
    peak = peak_memory(TESTBED, layout, (options[1],) * 6, frames_per_chunk=1).peak
    assert within(peak, TESTBED, layout, options, 4)[1].all()
    assert within(peak, TESTBED, layout, options, 4, held=1.0)[1].sum() == 11


def test_the_allowance_is_the_same_before_and_after_the_weights_are_there(monkeypatch):
    layout = TokenLayout(8, 4, 8, 8)
    outputs = peak_memory(TESTBED, layout).outputs / 8
    free = [10e9]
    monkeypatch.setattr(memory_module, "available_bytes", lambda device: free[0])
    before = allowance(None, TESTBED, layout, CPU)
    free[0] -= 3e9
    assert allowance(None, TESTBED, layout, CPU, loaded=3e9) == before == (9e9, 3 * outputs, 2 * outputs)
    assert allowance(None, TESTBED, layout, CPU, dense=False)[1:] == (outputs, 0)
    assert allowance(5e9, TESTBED, layout, torch.device("cuda")) == (5e9, 0, 0)


@pytest.mark.parametrize("bound", [0, 1, 2, 7, 100])
def test_bisection(bound):
    assert largest(lambda n: n <= bound) == bound


def test_a_chunk_is_halved_until_it_fits():
    layout = TokenLayout(64, 4, 8, 8)
    options, itemsize = (Exact(),), 4
    assert within(None, TESTBED, layout, options, itemsize)[0] is None
    needed = {f: peak_memory(TESTBED, layout, frames_per_chunk=f).peak for f in (64, 32, 16, 8, 4)}
    for small, large in ((32, 64), (8, 16), (4, 8)):
        chunk, allowed, why = within(needed[large] - 1, TESTBED, layout, options, itemsize)
        assert chunk == small and allowed.all()
        assert f"chunks of {small} frames: {large} would need {gib(needed[large])} of" in why
    chunk, _, why = within(needed[64], TESTBED, layout, options, itemsize)
    assert chunk == 64 == min(64, default_chunk(layout)) and why == "chunks of 64 frames"


def test_an_option_is_allowed_exactly_where_its_own_stage_fits():
    layout = TokenLayout(400, 4, 8, 8)
    options = (Exact(), Merge(keep=0.5), Subsample(stride=4))
    at = {"frames_per_chunk": 1}
    peaks = {p: peak_memory(TESTBED, layout, (p,) * 6, **at) for p in options}
    held = peaks[Exact()].weights + peaks[Exact()].images
    memory = held + sorted(x for m in peaks.values() for x in m.layers)[-4]
    chunk, allowed, why = within(memory, TESTBED, layout, options, 4)
    for j, policy in enumerate(options):
        layers = peak_memory(TESTBED, layout, (policy,) * 6, frames_per_chunk=chunk).layers
        assert allowed[:, j].tolist() == [held + x <= memory for x in layers]
    assert not allowed.all() and allowed.any(1).all() and "too large in some layers" in why
    with pytest.raises(AccelError, match=r"no option fits .* add Exact\(\)"):
        within(peaks[Exact()].peak, TESTBED, layout, options[1:], 4)
    with pytest.raises(AccelError, match=r"400 frames need about .* give --dtype bfloat16"):
        within(0.9 * peaks[Exact()].peak, TESTBED, layout, options, 4)


def test_the_free_memory_is_a_number_of_bytes():
    assert 1e6 < available_bytes(torch.device("cpu")) < 1e15
