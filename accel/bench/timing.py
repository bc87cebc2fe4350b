"""Interleaved timing: every round runs each candidate once, in rotating order, so that what else the machine does, and
its clock and temperature, meet all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accel.bench.machine import Machine, PeakMemory, first_line
from accel.errors import AccelError
from accel.patch import out_of_memory

OK, FAILED, NO_MEMORY, SKIPPED = "ok", "failed", "out of memory", "skipped"


@dataclass
class Trial:
    """One candidate: `call` is timed, and `inspect(its first result)` returns facts about it, outside the time."""

    name: str
    call: Callable[[], Any]
    inspect: Callable[[Any], dict[str, Any]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[tuple[int, float]] = field(default_factory=list)
    """(round, seconds)"""
    first: bool = True
    peak: int | None = None
    status: str = OK
    reason: str = ""


def rounds_of(names: Sequence[str], rounds: int, once: str | None = None) -> list[list[str]]:
    """The names in the order in which each round runs them: rotated by one from round to round.

    once: a name too dear to repeat. It runs between two rounds of the others, the second in reverse.
    """
    if once is not None:
        others = [name for name in names if name != once]
        return [[*others, once], others[::-1]]
    return [[*names[r % len(names) :], *names[: r % len(names)]] for r in range(rounds)]


def interleave(
    trials: Sequence[Trial],
    machine: Machine,
    *,
    rounds: int,
    deadline: float,
    once: str | None = None,
    warm_up: bool = True,
) -> list[str]:
    """Run the trials in rounds and fill in what they took; returns the order of all calls, warm-up first.

    A round that by the latest times would end after `deadline` (of `machine.clock`) is not begun, but the first one is.
    A trial that fails or runs out of memory is marked with the reason, and the others go on.
    """
    by_name, order = {trial.name: trial for trial in trials}, []
    if warm_up:
        for trial in trials:
            _attempt(trial, machine, None)
            order.append(trial.name)
    last: dict[str, float] = {}  # seconds of each, with what surrounds the call
    for turn, names in enumerate(rounds_of([trial.name for trial in trials], rounds, once)):
        names = [name for name in names if by_name[name].status == OK]
        if turn and machine.clock() + sum(last[name] for name in names) > deadline:
            break
        for name in names:
            start = machine.clock()
            _attempt(by_name[name], machine, turn)
            last[name] = machine.clock() - start
            order.append(name)
    return order


def _attempt(trial: Trial, machine: Machine, turn: int | None) -> None:
    """One call; turn None: not counted. The first one also finds the memory, whose measurement costs the CPU time."""
    result = None
    memory = PeakMemory(machine)
    try:
        with memory if trial.first else nullcontext():
            machine.wait()
            start = machine.clock()
            result = trial.call()
            machine.wait()
            seconds = machine.clock() - start
        if turn is not None:
            trial.seconds.append((turn, seconds))
        if trial.first:
            trial.first, trial.peak = False, memory.bytes
            if trial.inspect is not None:
                trial.facts |= trial.inspect(result)
    except (AccelError, RuntimeError, MemoryError) as error:
        trial.status = NO_MEMORY if out_of_memory(error) else FAILED
        trial.reason = first_line(error)
        trial.seconds.clear()
    finally:
        del result
    if trial.status != OK:
        machine.empty()


def summary(trial: Trial, reference: Trial | None) -> dict[str, Any]:
    """Median and quartiles of the seconds, and of the ratios reference over trial within rounds (a reference that ran
    once is that of every round); of one round there are no quartiles."""
    if trial.status != OK or not trial.seconds:
        return {"seconds": None, "seconds_quartiles": None, "speedup": None, "speedup_quartiles": None, "rounds": 0}
    values = [x for _, x in trial.seconds]
    found = {
        "seconds": float(np.median(values)),
        "seconds_quartiles": _quartiles(values),
        "speedup": None,
        "speedup_quartiles": None,
        "rounds": len(values),
    }
    if reference is not None and reference.status == OK and reference.seconds:
        there = dict(reference.seconds)
        only = reference.seconds[0][1] if len(there) == 1 else None
        ratios = [there.get(turn, only) / x for turn, x in trial.seconds if turn in there or only is not None]
        found |= {"speedup": float(np.median(ratios)), "speedup_quartiles": _quartiles(ratios)}
    return found


def _quartiles(values: Sequence[float]) -> list[float] | None:
    return None if len(values) < 2 else [float(x) for x in np.quantile(values, (0.25, 0.75))]
