"""Runs the cases of a profile within a time limit, keeps each result as it comes, and continues where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from accel.bench.cases import SUITES, Case, profile_cases
from accel.bench.machine import Machine, first_line
from accel.bench.results import assemble, save
from accel.bench.store import Store, check_results
from accel.bench.suites import prepare, run_case
from accel.bench.timing import FAILED, NO_MEMORY, OK, SKIPPED
from accel.bench.workspace import Workspace
from accel.errors import AccelError
from accel.patch import out_of_memory
from accel.policies import Policy
from accel.run import choose_device
from accel.store import check_folder

LIMIT = 520.0
"""Seconds of one call: less than nine minutes with start and figure; the command's default, too."""


def bench(
    out: Path | str,
    *,
    profile: str = "cpu",
    scale: str = "full",
    device: str = "auto",
    limit: float = LIMIT,
    only: str | None = None,
    retry: bool = False,
    console: Console | None = None,
    machine: Machine | None = None,
    options: Sequence[Policy] | None = None,
) -> dict[str, Any]:
    """Measure the cases of a profile that `out` does not have yet, as many as fit into `limit` seconds.

    A case is begun if its least time, predicted from the device's rates and corrected by the measured cases of its
    suite, fits into what is left of the limit; the first one of a call is begun in any case. Each finished case is a
    line of out/cases.jsonl under the fingerprint of the case, the code and the machine; the same call continues. Failed
    and out-of-memory cases count as finished unless `retry`. At the end, and when interrupted, out/results.json and
    out/bench.png are written from all cases of this code and machine. Returns what results.json holds. machine replaces
    the device, options what plans choose from.

    AccelError: unknown profile, suite or device, a limit that is not positive, a folder that cannot be written, or
    whose results.json is not a benchmark's.
    """
    if not (math.isfinite(limit) and limit > 0):
        raise AccelError(f"limit={limit} must be a positive number of seconds, such as {LIMIT:.0f}")
    whole = profile_cases(profile, scale)
    cases = _chosen(whole, only)
    out = Path(out)
    check_folder(out)
    check_results(out)
    machine = Machine(choose_device(device)) if machine is None else machine
    store, space = Store(out), Workspace(out, machine, options=options)
    store.begin()
    keys = {case: space.fingerprint(case.to_dict()) for case in cases}
    known = {record["fingerprint"]: record for record in store.records()}
    begin = machine.clock()
    say = console.print if console is not None else (lambda *words, **style: None)
    done = {case: known[key] for case, key in keys.items() if key in known}
    if retry:
        done = {case: record for case, record in done.items() if record["status"] in (OK, SKIPPED)}
    begun = 0
    try:
        for number, case in enumerate(cases):
            if case in done:
                continue
            record = _attempt(case, keys[case], space, done, first=not begun, deadline=begin + limit)
            if record is None:
                continue
            begun += record["status"] != SKIPPED
            store.append(record)
            done[case] = record
            words = record["status"] + (f": {record['reason']}" if record["reason"] else "")
            say(f"[{number + 1}/{len(cases)}] {case.name}: {record['case_seconds']:.1f} s, {words}", highlight=False)
    finally:
        space.release()
        waiting = [case for case in cases if case not in done]
        records = {record["fingerprint"]: record for record in store.records()}
        valid = [x for key, x in records.items() if key == space.fingerprint(x["case"])]
        results = {"profile": profile, "scale": scale, "code": space.code, "machine": machine.description()}
        results |= {"ignored": len(records) - len(valid), "left": [case.name for case in waiting]}
        measured = {Case.from_dict(record["case"]) for record in valid}
        results["not_asked"] = [case.name for case in whole if case not in measured and case not in cases]
        results |= assemble(valid)
        save(results, out)
    return results


def _chosen(cases: Sequence[Case], only: str | None) -> tuple[Case, ...]:
    """The cases of the suites named in `only`, separated by commas."""
    if only is None:
        return tuple(cases)
    names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise AccelError(f"suite {unknown[0]!r} is unknown; use one of {list(SUITES)}")
    return tuple(case for case in cases if case.suite in names)


def _attempt(
    case: Case, key: str, space: Workspace, done: dict[Case, dict], *, first: bool, deadline: float
) -> dict[str, Any] | None:
    """The record of a case that was run, or None where it would not end before the deadline and is not the first."""
    clock = space.machine.clock
    begin = clock()
    record: dict[str, Any] = {"fingerprint": key, "case": case.to_dict(), "name": case.name, "rows": []}
    record |= {"status": OK, "reason": "", "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    reason = space.machine.lacks(getattr(torch, case.dtype))
    if reason:
        return record | {"status": SKIPPED, "reason": reason, "case_seconds": 0.0, "expected_seconds": 0.0}
    if not first and begin + space.setup_seconds(case) > deadline:
        return None
    expected = 0.0
    try:
        ready = prepare(case, space)
        expected = ready.least(case)
        if not first and clock() + expected * _correction(case, done) > deadline:
            return None
        record |= run_case(case, ready, space, deadline)
    except Exception as error:  # whatever goes wrong in a case is its result, and the others go on
        record |= {"status": NO_MEMORY if out_of_memory(error) else FAILED, "reason": first_line(error)}
    if record["status"] == OK and record["rows"] and all(row["status"] != OK for row in record["rows"]):
        worst = next((row for row in record["rows"] if row["status"] != SKIPPED), record["rows"][0])
        record |= {"status": worst["status"], "reason": f"{worst['run']}: {worst['reason']}"}
    if record["status"] != OK:
        space.release()
    return record | {"case_seconds": clock() - begin, "expected_seconds": expected}


def _correction(case: Case, done: dict[Case, dict]) -> float:
    """Measured over predicted seconds of the reference runs of this suite and model so far, 1 where there is none."""
    ratios = [
        row["seconds"] / row["predicted_seconds"]
        for other, record in done.items()
        if (other.suite, other.model) == (case.suite, case.model)
        for row in record["rows"]
        if row["status"] == OK and row["predicted_seconds"]
    ]
    return median(ratios) if ratios else 1.0
