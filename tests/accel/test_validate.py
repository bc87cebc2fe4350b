"""Validation says what was measured, whatever the schedule claims."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from accel.cost import Device
from accel.errors import AccelError
from accel.outputs import output_difference
from accel.patch import patch
from accel.policies import Frame, Policy, Subsample
from accel.predictors import OraclePredictor
from accel.profile import probe
from accel.run import forward
from accel.schedule import exact_schedule, plan
from accel.validate import validate
from tests.accel.test_profile import generator, tiny

DEVICE = Device("test", linear=1e11, attention=2e9, convolution=1e11, bandwidth=1e11)


@pytest.fixture(scope="module")
def model():
    return tiny(depth=2)


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 4, 3, 32, 32, generator=generator(1))


@pytest.fixture(scope="module")
def schedule(model, images):
    options = (Frame(), Subsample(stride=8))
    profile = probe(model, images, options=options, queries=16, generator=generator(), progress=False)
    oracle = OraclePredictor(model, images)
    return plan(profile, model.layout(images), predictor=oracle, tolerance=1e9, device=DEVICE)


def test_an_honest_schedule_is_confirmed(model, images, schedule):
    found = validate(model, images, schedule, repeats=2, progress=False)
    assert found["measured_error"].values == pytest.approx(found["predicted_error"].values, rel=1e-4)
    assert (found["measured_error"] > 0).all() and (found["fallbacks"] == 0).all()
    with torch.no_grad():
        reference = model(images)
        with patch(model, schedule):
            planned = model(images)
    for name, value in output_difference(reference, planned).items():
        assert float(found[f"measured_{name}"]) == pytest.approx(value, rel=1e-4)
    assert float(found["predicted_total"]) == pytest.approx(schedule.predicted_total)
    assert all(found[name].attrs["long_name"] and found[name].attrs["units"] for name in found.data_vars)
    assert found.attrs["predictor"] == "oracle" and found.sizes == {"layer": 2, "repeat": 2}


def test_a_lie_is_seen(model, images, schedule):
    lie = replace(schedule, predicted_error=tuple(x / 10 for x in schedule.predicted_error))
    found = validate(model, images, lie, repeats=1, progress=False)
    assert (found["measured_error"] / found["predicted_error"]).values == pytest.approx([10, 10], rel=1e-3)
    assert float(found["predicted_total"]) == pytest.approx(schedule.predicted_total / 10)
    swapped = replace(schedule, policies=(Subsample(stride=2, fill="mass"),) * 2)
    found = validate(model, images, swapped, repeats=1, progress=False)
    assert (abs(found["measured_error"] / found["predicted_error"] - 1) > 0.1).all()


def test_a_policy_out_of_memory_shows(model, images, schedule, monkeypatch):
    with torch.no_grad():
        reference = model(images)
    attend, calls = Policy.attend, itertools.count()

    def fail(self, *args, **kwargs):
        if next(calls) < schedule.layers:  # the forward that measures
            return attend(self, *args, **kwargs)
        raise MemoryError("no more")

    monkeypatch.setattr(Policy, "attend", fail)
    found = validate(model, images, schedule, repeats=2, progress=False)
    assert found["fallbacks"].values.tolist() == [3, 3]
    assert float(found["measured_total"]) == 0 and output_difference(reference, reference)["total"] == 0
    _, _, notes = forward(model, images, schedule)
    assert notes == tuple(f"Layer {i}: exact, the policy ran out of memory (no more)." for i in range(2))


def test_exact_is_exact(model, images):
    found = validate(model, images, exact_schedule(model.layout(images), 2), repeats=1, progress=False)
    assert float(found["measured_total"]) == 0 and (found["measured_error"] == 0).all()
    assert math.isnan(float(found["predicted_speedup"]))


def test_times_are_medians_of_turns(model, images, schedule):
    ticks = itertools.chain([0, 10, 10, 11, 11, 31, 31, 33, 33, 36, 36, 42])
    found = validate(model, images, schedule, repeats=3, progress=False, clock=lambda: float(next(ticks)))
    assert found["run_seconds_dense"].values.tolist() == [10, 20, 3]
    assert found["run_seconds_planned"].values.tolist() == [1, 2, 6]
    assert float(found["measured_seconds_dense"]) == 10 and float(found["measured_speedup"]) == 5
    assert float(found["predicted_speedup"]) == pytest.approx(schedule.predicted_speedup)


def test_what_is_refused(model, images, schedule):
    with pytest.raises(AccelError, match="plan for these"):
        validate(model, images[:, :3], schedule, progress=False)
    with pytest.raises(AccelError, match="repeats=0"):
        validate(model, images, schedule, repeats=0, progress=False)
    with pytest.raises(AccelError, match="3 layers and the model 2"):
        validate(model, images, exact_schedule(schedule.layout, 3), progress=False)
    with pytest.raises(AccelError, match="one scene"):
        validate(model, images[0], schedule, progress=False)
