"""Out of memory in the middle: half the frames, another plan, then the message."""

from dataclasses import replace

import pytest
import torch

from accel.errors import AccelError
from accel.memory import frames_that_fit, peak_memory
from accel.models import random_model
from accel.policies import Exact, Merge
from accel.recover import OutOfMemory, Recovery
from accel.schedule import exact_schedule
from tests.accel.test_run import SMALL

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    MemoryError(),
]


@pytest.fixture
def model():
    return random_model(SMALL, torch.Generator().manual_seed(0))


@pytest.fixture
def layout(model):
    return replace(model.layout(torch.zeros(1, 8, 3, 32, 32)), frames=8)


def schedule(layout, policy, bytes_):
    peaks = {"predicted_memory": (min(bytes_, 5e6), bytes_)}
    return replace(exact_schedule(layout, 4), policies=(policy,) * 4, **peaks)


def fails_until(holds, error, result="done"):
    calls = []

    def call():
        calls.append(1)
        if not holds():
            raise error
        return result

    return call, calls


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_the_chunk_is_halved_until_it_fits_and_each_step_is_said(model, layout, error):
    said = []
    within = Recovery(model, layout, say=said.append)
    call, calls = fails_until(lambda: model.chunk(layout) <= 2, error)
    assert within(call) == "done" and len(calls) == 3 and model.frames_per_chunk == 2
    assert said == within.notes and len(said) == 2
    assert "4 frames at once instead of 8" in said[0] and "2 frames at once instead of 4" in said[1]
    assert (str(error).splitlines() or ["MemoryError"])[0][:20] in said[0]


def test_then_another_plan_is_made_within_less(model, layout):
    asked = []

    def replan(memory):
        asked.append(memory)
        return schedule(layout, Exact(), 5e6)

    within = Recovery(model, layout, replan=replan)
    within.adopt(schedule(layout, Merge(keep=0.5), 9e6))
    call, _ = fails_until(lambda: within.schedule.policies[0] == Exact(), ERRORS[0])
    assert within(call) == "done" and asked == [pytest.approx(0.8 * 9e6)]
    assert "planned again" in within.notes[-1] and model.frames_per_chunk == 1


def test_a_limit_below_every_plan_gives_the_one_that_needs_least(model, layout):
    def replan(memory):
        if memory < 5e6:
            raise AccelError("too little")
        return schedule(layout, Exact(), 5e6)

    within = Recovery(model, layout, replan=replan)
    within.adopt(schedule(layout, Merge(keep=0.5), 5.5e6))
    call, _ = fails_until(lambda: within.schedule.policies[0] == Exact(), ERRORS[0])
    assert within(call) == "done"


def test_at_the_end_the_frames_that_would_fit_are_named(model, layout):
    peak = peak_memory(SMALL, layout, frames_per_chunk=1).peak
    within = Recovery(model, layout, replan=lambda memory: within.schedule)
    within.adopt(replace(exact_schedule(layout, 4), predicted_memory=(peak, peak)))
    call, calls = fails_until(lambda: False, ERRORS[1])
    fitting = frames_that_fit(SMALL, layout, 0.8 * peak)
    assert 0 < fitting < 8
    with pytest.raises(OutOfMemory, match=rf"with 8 frames, one at a time .* give --frames {fitting}, or --dtype"):
        within(call)
    assert len(calls) == 4


def test_the_plan_in_force_has_the_chunk_that_worked(model, layout):
    within = Recovery(model, layout)
    within.adopt(replace(exact_schedule(layout, 4), frames_per_chunk=8, memory_reason="chunks of 8 frames"))
    call, _ = fails_until(lambda: model.chunk(layout) <= 2, ERRORS[0])
    assert within(call) == "done" and within.schedule.frames_per_chunk == model.frames_per_chunk == 2
    assert within.schedule.memory_reason.startswith("chunks of 8 frames; ") and "2 at once" in (
        within.schedule.memory_reason
    )
    within.adopt(replace(exact_schedule(layout, 4), frames_per_chunk=8))
    assert within.schedule.frames_per_chunk == model.frames_per_chunk == 2


@pytest.mark.parametrize("planned", [False, True])
def test_fewer_than_two_photographs_are_not_a_remedy(model, layout, planned):
    pair = replace(layout, frames=2)
    within = Recovery(model, pair)
    if planned:
        peak = peak_memory(SMALL, replace(layout, frames=1), frames_per_chunk=1).peak
        within = Recovery(model, layout)
        within.adopt(replace(exact_schedule(layout, 4), predicted_memory=(peak, peak)))
    with pytest.raises(OutOfMemory, match="not even two photographs would fit: give smaller images") as caught:
        within(fails_until(lambda: False, ERRORS[0])[0])
    assert "--frames" not in str(caught.value)


def test_before_a_plan_there_is_nothing_to_plan_again(model, layout):
    within = Recovery(model, layout)
    with pytest.raises(OutOfMemory, match="give fewer --frames"):
        within(fails_until(lambda: False, ERRORS[2])[0])


def test_calls_that_a_plan_does_not_concern_are_not_planned_again(model, layout):
    within = Recovery(model, layout, replan=lambda memory: pytest.fail("planned again"))
    within.adopt(schedule(layout, Merge(keep=0.5), 9e6))
    with pytest.raises(OutOfMemory):
        within(fails_until(lambda: False, ERRORS[0])[0], planned=False)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), AccelError("bad"), KeyboardInterrupt()])
def test_other_errors_come_out_as_they_are(model, layout, error):
    with pytest.raises(type(error)):
        Recovery(model, layout)(fails_until(lambda: False, error)[0])
    assert model.frames_per_chunk is None
