import pytest
import torch

from accel.bench.machine import PeakMemory
from accel.bench.timing import FAILED, NO_MEMORY, OK, Trial, interleave, rounds_of, summary
from accel.errors import AccelError
from tests.accel.bench.fakes import Clock, cpu
from tests.tolerances import RESIDENT_BYTES


def trials(clock, **seconds):
    """Trials that take so many seconds, each a list to take from or one number."""

    def call(name):
        def run():
            value = seconds[name]
            clock.advance(value.pop(0) if isinstance(value, list) else value)
            return name

        return run

    return [Trial(name, call(name)) for name in seconds]


def test_every_round_runs_everything_once_and_rotates():
    rounds = rounds_of("abc", 4)
    assert rounds == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert rounds_of("abc", 9, once="a") == [["b", "c", "a"], ["c", "b"]]


def test_calls_are_timed_and_the_warm_up_is_not():
    clock = Clock()
    a, b = trials(clock, a=[100.0, 2.0, 4.0, 3.0], b=[50.0, 1.0, 1.0, 1.0])
    order = interleave([a, b], cpu(clock), rounds=3, deadline=1e9)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert a.seconds == [(0, 2.0), (1, 4.0), (2, 3.0)] and b.seconds == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_no_round_begins_that_would_end_late_but_the_first_does():
    clock = Clock()
    a, b = trials(clock, a=4.0, b=2.0)
    interleave([a, b], cpu(clock), rounds=9, deadline=12.5, warm_up=False)
    assert clock.now == 12.0 and len(a.seconds) == len(b.seconds) == 2
    interleave([a, b], cpu(clock), rounds=9, deadline=0.0, warm_up=False)
    assert clock.now == 18.0


def test_a_dear_reference_runs_once_between_the_others():
    clock = Clock()
    dense, a, b = trials(clock, dense=100.0, a=[2.0, 4.0], b=[5.0, 5.0])
    order = interleave([dense, a, b], cpu(clock), rounds=2, deadline=1e9, once="dense", warm_up=False)
    assert order == ["a", "b", "dense", "b", "a"]
    found = summary(a, dense)
    assert found["seconds"] == 3.0 and found["speedup"] == pytest.approx((50 + 25) / 2)
    assert found["speedup_quartiles"] == pytest.approx([25 + 0.25 * 25, 25 + 0.75 * 25])


def test_median_and_quartiles_of_the_ratios_within_rounds():
    clock = Clock()
    dense, a = trials(clock, dense=[0.0, 10.0, 20.0, 40.0], a=[0.0, 5.0, 8.0, 4.0])
    interleave([dense, a], cpu(clock), rounds=3, deadline=1e9)
    found = summary(a, dense)
    assert found["seconds"] == 5.0 and found["speedup"] == 2.5  # the medians of the seconds have the ratio 4
    assert found["speedup_quartiles"] == pytest.approx([2.25, 6.25])  # of 2, 2.5 and 10
    assert found["seconds_quartiles"] == pytest.approx([4.5, 6.5]) and found["rounds"] == 3


def test_the_ratio_is_within_its_quartiles_where_the_ratio_of_the_medians_is_not():
    clock = Clock()
    dense, a = trials(clock, dense=[10.0, 30.0, 20.0], a=[1.0, 10.0, 10.0])
    interleave([dense, a], cpu(clock), rounds=3, deadline=1e9, warm_up=False)
    found = summary(a, dense)
    low, high = found["speedup_quartiles"]  # of 10, 3 and 2
    assert low <= found["speedup"] <= high and found["speedup"] == 3.0


def test_one_round_has_no_quartiles():
    clock = Clock()
    dense, a = trials(clock, dense=4.0, a=2.0)
    interleave([dense, a], cpu(clock), rounds=1, deadline=1e9)
    found = summary(a, dense)
    assert found["speedup"] == 2.0 and found["speedup_quartiles"] is None and found["seconds_quartiles"] is None


@pytest.mark.parametrize(
    "error, status",
    [
        (AccelError("no such policy; use another"), FAILED),
        (RuntimeError("shape mismatch"), FAILED),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), NO_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), NO_MEMORY),
        (MemoryError(), NO_MEMORY),
    ],
)
def test_a_failing_trial_says_why_and_the_others_go_on(error, status):
    clock = Clock()
    (good,) = trials(clock, good=1.0)

    def fail():
        raise error

    bad = Trial("bad", fail)
    order = interleave([bad, good], cpu(clock), rounds=2, deadline=1e9)
    assert order.count("bad") == 1 and len(good.seconds) == 2
    assert bad.status == status and bad.reason and "\n" not in bad.reason
    assert summary(bad, good)["seconds"] is None
    assert good.status == OK and summary(good, bad)["speedup"] is None


def test_facts_are_taken_once_and_outside_the_time():
    clock, seen = Clock(), []
    (a,) = trials(clock, a=1.0)

    def inspect(result):
        seen.append(result)
        clock.advance(50.0)
        return {"fact": 7}

    a.inspect = inspect
    interleave([a], cpu(clock), rounds=3, deadline=1e9, warm_up=False)
    assert seen == ["a"] and a.facts == {"fact": 7} and [x for _, x in a.seconds] == [1.0] * 3


def test_peak_memory_of_a_call():
    size = 200 * 2**20
    with PeakMemory(cpu()) as found:
        torch.ones(size // 4)
    if found.bytes is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert abs(found.bytes / size - 1) < RESIDENT_BYTES
    with PeakMemory(cpu()) as less:
        torch.ones(size // 40)
    assert less.bytes < size / 4  # the peak before does not count
