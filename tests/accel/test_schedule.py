"""The planner against brute force, its refusals, its reasons, and the JSON round-trip."""

import itertools
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from accel.cost import Device, model_cost
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.memory import peak_memory
from accel.patch import patch
from accel.policies import Exact, Frame, Merge, QueryMerge, Subsample
from accel.predictors import ConstantPredictor, TheoryPredictor
from accel.presets import PUBLISHED, published_schedule
from accel.profile import probe
from accel.schedule import Schedule, exact_schedule, plan
from tests.accel.test_profile import generator, tiny

DEVICE = Device("test", linear=1e11, attention=2e9, convolution=1e11, bandwidth=1e11)
OPTIONS = (Exact(), Frame(), Subsample(stride=2, fill="mass"), Subsample(stride=8))


@dataclass(frozen=True)
class Table:
    """A predictor that says what it is told."""

    errors: np.ndarray
    name: str = "table"

    def __call__(self, profile, layout, policies):
        return self.errors[:, : len(policies)]


@pytest.fixture(scope="module")
def model():
    return tiny(depth=3)


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 5, 3, 32, 32, generator=generator(1))


@pytest.fixture(scope="module")
def profile(model, images):
    return probe(model, images, options=OPTIONS, queries=16, generator=generator(), progress=False)


@pytest.fixture
def layout(profile):
    return replace(profile.layout, frames=12)


def every_schedule(profile, layout, errors):
    """(total output error, seconds of the forward, policies) of all combinations, by the public cost model."""
    damage = errors * profile.sensitivity(OPTIONS)
    for chosen in itertools.product(range(len(OPTIONS)), repeat=profile.layers):
        policies = tuple(OPTIONS[j] for j in chosen)
        error = sum(damage[layer, j] for layer, j in enumerate(chosen))
        yield error, model_cost(profile.config, layout, policies).seconds(DEVICE)["total"], policies


@pytest.mark.parametrize("seed", range(4))
def test_plan_is_the_best_of_all_combinations(profile, layout, seed):
    errors = np.random.default_rng(seed).uniform(0.01, 1, (profile.layers, len(OPTIONS))) * [0, 1, 1, 1]
    table = list(every_schedule(profile, layout, errors))
    dense = next(seconds for _, seconds, policies in table if set(policies) == {Exact()})
    fastest = dense / min(seconds for _, seconds, _ in table)
    for budget in (1.0, 1 + 0.3 * (fastest - 1), 1 + 0.8 * (fastest - 1), fastest * (1 - 1e-12)):
        found = plan(profile, layout, predictor=Table(errors), budget=budget, device=DEVICE)
        best = min(error for error, seconds, _ in table if seconds <= dense / budget * (1 + 1e-9))
        assert found.predicted_total == pytest.approx(best, rel=1e-6, abs=1e-12)
        assert found.predicted_speedup >= budget * (1 - 1e-9)
        assert found.predicted_seconds[1] == pytest.approx(
            next(seconds for _, seconds, policies in table if policies == found.policies)
        )
    for tolerance in (0.0, *np.quantile([error for error, _, _ in table], [0.1, 0.5])):
        found = plan(profile, layout, predictor=Table(errors), tolerance=tolerance, device=DEVICE)
        best = min(seconds for error, seconds, _ in table if error <= tolerance + 1e-12)
        assert found.predicted_seconds[1] == pytest.approx(best, rel=1e-9)
        assert found.predicted_total <= tolerance + 1e-9


def test_an_impossible_budget_names_the_best_and_the_remedy(profile, layout):
    with pytest.raises(
        AccelError, match=r"budget=100 cannot be met at 12 frames: .* at best (\d\.\d\d)x.*more frames"
    ) as e:
        plan(profile, layout, predictor=ConstantPredictor(), budget=100.0, device=DEVICE)
    best = float(str(e.value).split("at best ")[1].split("x")[0])
    found = plan(profile, layout, predictor=ConstantPredictor(), budget=best - 0.01, device=DEVICE)
    assert found.predicted_speedup >= best - 0.01
    with pytest.raises(AccelError, match="at best"):
        plan(profile, layout, predictor=ConstantPredictor(), budget=best + 0.01, device=DEVICE)


@pytest.mark.parametrize(
    ("goal", "match"),
    [
        ({}, "exactly one"),
        ({"budget": 2.0, "tolerance": 0.1}, "exactly one"),
        ({"budget": 0.5}, "at least 1"),
        ({"budget": math.nan}, "at least 1"),
        ({"budget": math.inf}, "at least 1"),
        ({"tolerance": -0.1}, "at least 0"),
        ({"tolerance": math.nan}, "at least 0"),
        ({"tolerance": 0.0, "options": (Frame(),)}, "add Exact"),
        ({"tolerance": 0.1, "options": ()}, "add Exact"),
    ],
)
def test_bad_goals(profile, layout, goal, match):
    with pytest.raises(AccelError, match=match):
        plan(profile, layout, predictor=ConstantPredictor(), device=DEVICE, **goal)


def test_a_predictor_that_is_not_finite_is_refused(profile, layout):
    errors = np.full((profile.layers, len(OPTIONS)), math.nan)
    with pytest.raises(AccelError, match="predictor 'table'"):
        plan(profile, layout, predictor=Table(errors), budget=1.1, device=DEVICE)


def test_more_frames_reach_more(profile):
    def best(frames):
        with pytest.raises(AccelError) as e:
            large = replace(profile.layout, frames=frames)
            plan(profile, large, predictor=TheoryPredictor(), budget=1000.0, device=DEVICE)
        return float(str(e.value).split("at best ")[1].split("x")[0])

    assert best(64) > best(16) > best(4)


def test_reasons_and_table(profile, layout):
    errors = np.tile([0, 0.3, 0.1, 0.2], (profile.layers, 1))
    found = plan(profile, layout, predictor=Table(errors), budget=1.2, device=DEVICE)
    assert all(reason.startswith(p.name) for reason, p in zip(found.reasons, found.policies, strict=True))
    text = str(found)
    for word in ("policy", "keys per", "attention error", "sensitivity", "output error", "saved", "reason", "table"):
        assert word in text
    assert f"{found.predicted_speedup:.2f}x" in text
    frames = plan(profile, layout, predictor=Table(errors), tolerance=1e9, options=[Frame()], device=DEVICE)
    assert all("of the mass is in the own frame" in reason for reason in frames.reasons)
    assert frames.seconds_saved[0] > 0
    slow = replace(DEVICE, overhead=1.0)  # of seconds that exact attention does not take
    for device in (DEVICE, slow):
        found = plan(profile, layout, predictor=Table(errors), tolerance=1e9, options=[Frame()], device=device)
        exact = device.attention_seconds(Exact(), layout, profile.config.head_dim, profile.config.num_heads)
        share = found.seconds_saved[0] / exact
        words = f"saves {share:.0%} of" if device is DEVICE else f"adds {-share:.0%} to"
        assert found.reasons[0].endswith(f", {words} the layer's attention time")


def test_json_round_trip(profile, layout, tmp_path):
    found = plan(profile, layout, predictor=TheoryPredictor(), budget=1.3, device=DEVICE)
    assert Schedule.from_json(found.to_json()) == found
    found.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == found
    exact_schedule(layout, 3).save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == exact_schedule(layout, 3)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "match"), [("{", "not JSON"), ("[]", "got list"), ('{"layout": 1}', "exactly the fields")]
)
def test_bad_json(text, match, tmp_path):
    with pytest.raises(AccelError, match=match):
        Schedule.from_json(text)
    with pytest.raises(AccelError, match="no schedule at"):
        Schedule.load(tmp_path / "none.json")


def test_a_schedule_is_checked(layout):
    good = exact_schedule(layout, 3)
    with pytest.raises(AccelError, match="reasons has 2 entries for 3"):
        replace(good, reasons=("", ""))
    with pytest.raises(AccelError, match="at least 2 frames"):
        replace(good, layout=TokenLayout(1, 4, 4, 4), policies=(Subsample(stride=4),) * 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": 5},
        {"policies": ["x"] * 3},
        {"layout": None},
        {"sensitivity": None},
        {"sensitivity": "abc"},
        {"predicted_error": [math.nan] * 3},
        {"predicted_seconds": 5},
        {"predicted_seconds": [1]},
        {"predicted_seconds": [1, 0]},
        {"device": "cpu"},
        {"device": DEVICE.to_dict() | {"linear": "x"}},
    ],
)
def test_a_damaged_schedule_is_refused(layout, tmp_path, wrong):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(json.loads(exact_schedule(layout, 3).to_json()) | wrong))
    with pytest.raises(AccelError, match=r"bad\.json"):
        Schedule.load(path)


def test_a_binary_file_is_no_schedule(tmp_path):
    (tmp_path / "bad.json").write_bytes(bytes(range(256)))
    with pytest.raises(AccelError, match="not text"):
        Schedule.load(tmp_path / "bad.json")


def test_one_frame_has_nothing_to_plan(profile):
    with pytest.raises(AccelError, match="give at least 2"):
        one = replace(profile.layout, frames=1)
        plan(profile, one, predictor=TheoryPredictor(), tolerance=0.1, device=DEVICE)


def test_the_plan_can_be_applied(model, images, profile):
    layout = model.layout(images)
    found = plan(profile, layout, predictor=TheoryPredictor(), tolerance=1e9, device=DEVICE)
    with torch.no_grad(), patch(model, found) as applied:
        model(images)
    assert applied.calls == [1, 1, 1]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_settings(name, model, images):
    layout = TokenLayout(200, 5, 28, 37)
    found = published_schedule(name, layout, 24)
    assert found.layers == 24 and all(p.name != "exact" for p in found.policies) and found.predictor == f"none ({name})"
    assert Schedule.from_json(found.to_json()) == found
    assert all(name in reason for reason in found.reasons)
    small = model.layout(images)
    with torch.no_grad(), patch(model, published_schedule(name, small, 3)):
        out = model(images)
    assert torch.isfinite(out["depth"]).all()


def test_what_published_settings_say(layout):
    policies = published_schedule("avggt", layout, 24).policies
    assert policies[:9] == (Frame(),) * 9 and set(policies[9:]) == {Subsample.avggt(4)}
    one = replace(layout, frames=1)
    alone = published_schedule("fastvggt", one, 2)
    assert set(alone.policies) == {Exact()} and "at least 2 frames" in alone.reasons[0]
    with pytest.raises(AccelError, match="'fast' is no published setting; use one of"):
        published_schedule("fast", layout, 24)
    with pytest.raises(AccelError, match="layers=0"):
        published_schedule("avggt", layout, 0)


def test_reasons_say_what_is_merged(model, images):
    options = (Merge(keep=0.6), QueryMerge(keep=0.5))
    profile = probe(model, images, options=options, queries=16, generator=generator(), progress=False)
    for policy, words in zip(options, ("of the tokens, merged, give", "of the queries give"), strict=True):
        found = plan(
            profile, profile.layout, predictor=TheoryPredictor(), tolerance=1e9, device=DEVICE, options=[policy]
        )
        assert all(words in reason for reason in found.reasons)


# --- memory ---


def memory_of(profile, layout, policies=None, chunk=None):
    return peak_memory(profile.config, layout, policies, frames_per_chunk=chunk, itemsize=DEVICE.itemsize)


def test_without_a_limit_the_model_keeps_its_chunk_and_the_peak_is_predicted(profile, layout):
    found = plan(profile, layout, predictor=ConstantPredictor(), budget=1.2, device=DEVICE)
    assert found.frames_per_chunk is None and not found.memory_reason
    want = memory_of(profile, layout).peak, memory_of(profile, layout, found.policies).peak
    assert found.predicted_memory == want and "peak" in found.summary()


def test_a_plan_within_memory_says_what_it_chose_and_why(profile, layout):
    large = replace(layout, frames=200)
    memory = memory_of(profile, large, chunk=8).peak
    found = plan(profile, large, predictor=ConstantPredictor(), tolerance=0.0, device=DEVICE, memory=memory)
    assert found.frames_per_chunk == next(
        f for f in (200, 100, 50, 25, 12, 6, 3, 1) if memory_of(profile, large, chunk=f).peak <= memory
    )
    assert max(found.predicted_memory) <= memory
    assert (
        f"chunks of {found.frames_per_chunk} frames: {1 + 2 * found.frames_per_chunk} would need"
        in str(found.summary())
        or f"chunks of {found.frames_per_chunk} frames: {2 * found.frames_per_chunk} would need" in found.summary()
    )


def test_an_option_that_does_not_fit_is_not_chosen(profile, layout):
    """A predictor that loves the merge, in memory that the merge exceeds in late layers alone."""
    large = replace(layout, frames=400)
    options = (Exact(), Subsample(stride=2, fill="mass"))
    errors = np.tile([0.5, 0.0], (profile.layers, 1))
    needed = memory_of(profile, large, (options[1],) * profile.layers, chunk=1)
    held = needed.weights + needed.images
    memory = held + (needed.layers[-1] + needed.layers[-2]) / 2
    assert memory_of(profile, large, chunk=1).peak < memory < needed.peak
    goal = {"predictor": Table(errors), "budget": 1.0, "device": DEVICE, "options": options}
    assert set(plan(profile, large, **goal).policies) == {options[1]}
    found = plan(profile, large, memory=memory, **goal)
    assert [p.name for p in found.policies] == ["subsample"] * (profile.layers - 1) + ["exact"]
    assert max(found.predicted_memory) <= memory and "too large in some layers: subsample" in found.memory_reason


@pytest.mark.parametrize("memory", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_is_no_number_of_bytes_is_refused(profile, layout, memory):
    with pytest.raises(AccelError, match=f"memory={memory} is a number of bytes"):
        plan(profile, layout, predictor=ConstantPredictor(), budget=1.1, device=DEVICE, memory=memory)


def test_more_frames_than_fit_says_how_many_would(profile, layout):
    memory = memory_of(profile, replace(layout, frames=50), chunk=1).peak
    with pytest.raises(AccelError, match=r"500 frames need about .*give --frames (\d+), so many would fit") as e:
        plan(
            profile,
            replace(layout, frames=500),
            predictor=ConstantPredictor(),
            tolerance=0.1,
            device=DEVICE,
            memory=memory,
        )
    count = int(str(e.value).split("--frames ")[1].split(",")[0])
    plan(
        profile,
        replace(layout, frames=count),
        predictor=ConstantPredictor(),
        tolerance=0.0,
        device=DEVICE,
        memory=memory,
    )
    assert count == 50


def test_memory_goes_through_json_and_old_files_load(profile, layout):
    memory = memory_of(profile, layout).peak
    found = plan(profile, layout, predictor=ConstantPredictor(), tolerance=0.0, device=DEVICE, memory=memory)
    assert found.frames_per_chunk and Schedule.from_json(found.to_json()) == found
    data = json.loads(found.to_json())
    for name in ("frames_per_chunk", "predicted_memory", "memory_reason"):
        data.pop(name)
    old = Schedule.from_json(json.dumps(data))
    assert (old.frames_per_chunk, old.predicted_memory, old.memory_reason) == (None, None, "")
    assert old.policies == found.policies
    for wrong in ({"frames_per_chunk": 0}, {"frames_per_chunk": 2.5}, {"predicted_memory": [1.0]}):
        with pytest.raises(AccelError, match=next(iter(wrong))):
            Schedule.from_json(json.dumps(data | wrong))
