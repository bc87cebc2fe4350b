"""From the records of cases to comparable rows: ratios over dense, growth with the tokens, and the files of a call."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel.bench.cases import FLOOR, PLANS, Case
from accel.bench.figures import figure
from accel.bench.settings import DENSE
from accel.bench.timing import OK
from accel.bench.workspace import write

SAME, ONCE, LINKED = "same rounds", "same case, dense once", "through {}, dense in another case"
REFERENCES = (DENSE, "forward")


def assemble(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"rows": one per run with its ratio over dense, "growth": exponents in N, "cases": the records}."""
    cases = [Case.from_dict(record["case"]) for record in records]
    rows = []
    for case, record in zip(cases, records, strict=True):
        about = {"suite": case.suite, "model": case.model, "frames": case.frames, "tokens": case.layout.tokens}
        about |= {"dtype": case.dtype, "reference": case.runs[0]}
        if not record["rows"]:
            rows += [about | {"run": run, "status": record["status"], "reason": record["reason"]} for run in case.runs]
        for row in record["rows"]:
            basis = ONCE if case.once and case.runs[0] in REFERENCES else SAME
            rows.append(about | row | {"speedup_basis": basis if row["speedup"] is not None else None})
    for row in rows:
        if row["reference"] not in REFERENCES:
            _link(row, rows)
    for row in rows:
        if row["run"] in PLANS:
            floor = _find(rows, row, FLOOR, DENSE)
            if floor is not None and floor["speedup"] and row.get("speedup"):
                row["over_floor"] = floor["speedup"] / row["speedup"]
    return {"rows": rows, "growth": growth(rows), "cases": list(records)}


def _find(rows: Sequence[dict], like: dict, run: str, reference: str) -> dict | None:
    """The measured row of a run beside `like`: same suite, model, layout and dtype, in a case of this reference."""
    keys = ("suite", "model", "frames", "tokens", "dtype")
    for row in rows:
        same = all(row[key] == like[key] for key in keys) and row["reference"] == reference
        if same and row["run"] == run and row["status"] == OK and row.get("seconds"):
            return row
    return None


def _link(row: dict[str, Any], rows: Sequence[dict]) -> None:
    """Replace the ratio over a case's own reference by that over dense: reference over it here, times dense over the
    reference where both were measured. Without such a case there is no ratio."""
    link = row["reference"]
    there = _find(rows, row, link, DENSE)
    over_link, row["speedup"] = row.get("speedup"), None
    quartiles, row["speedup_quartiles"], row["speedup_basis"] = row.get("speedup_quartiles"), None, None
    if over_link is None or there is None or there["speedup"] is None:
        return
    factor = there["speedup"]
    row["speedup"] = factor * over_link
    row["speedup_quartiles"] = None if quartiles is None else [factor * x for x in quartiles]
    row["speedup_basis"] = LINKED.format(link)


def growth(rows: Sequence[dict[str, Any]], last: int = 3) -> list[dict[str, Any]]:
    """Exponents in the number of tokens of seconds and of peak bytes, for every model and run: least squares of the
    logarithms over the `last` largest sizes, at least two; dense attention alone has 2."""
    found = []
    whole = [row for row in rows if row["suite"] in ("model", "memory") and row["status"] == OK]
    for model, run in dict.fromkeys((row["model"], row["run"]) for row in whole):
        points: dict[int, dict] = {}
        for row in whole:  # the suite model comes first: of two measurements of a size the one in more rounds
            if (row["model"], row["run"]) == (model, run) and row.get("seconds"):
                points.setdefault(row["tokens"], row)
        sizes = sorted(points)[-last:]
        if len(sizes) < 2:
            continue
        entry: dict[str, Any] = {"model": model, "run": run, "tokens": sizes}
        for name, key in (("seconds", "seconds"), ("peak_bytes", "peak_bytes")):
            values = [points[n].get(key) for n in sizes]
            entry[name] = _slope(sizes, values) if all(values) else None
        found.append(entry)
    return found


def _slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def save(results: dict[str, Any], out: Path) -> None:
    """Write out/results.json and out/bench.png, each whole or not at all."""
    write(out / "results.json", json.dumps(clean(results), indent=1, allow_nan=False) + "\n")
    figure(results, out / "bench.png")


def clean(value: Any) -> Any:
    """JSON values; non-finite numbers are None."""
    if isinstance(value, dict):
        return {str(key): clean(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [clean(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
