"""Finished cases on disk, one JSON line each, appended at once: an interrupted benchmark loses one case at most."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from accel.bench.cases import Case
from accel.errors import AccelError

FILE, RESULTS = "cases.jsonl", "results.json"
_RESULTS_KEYS = {"profile", "scale", "code", "left", "rows", "growth", "cases"}
_RECORD = {"fingerprint": str, "case": dict, "rows": list, "status": str, "reason": str}
_ROW = {"run": str, "status": str, "reason": str, "basis": str}
_NUMBERS = ("seconds", "speedup", "predicted_seconds")
_FURTHER = ("peak_bytes", "tflops", "error", "output_difference", "rounds")  # not in every row
_PAIRS = ("seconds_quartiles", "speedup_quartiles")


def check_results(folder: Path) -> None:
    """AccelError where folder/results.json is not a benchmark's (`accel run` writes one, too): it would be lost."""
    path = folder / RESULTS
    if not path.exists():
        return
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not (folder / FILE).is_file():
        why = f"there is no {FILE} beside it"
    elif not (isinstance(found, dict) and set(found) >= _RESULTS_KEYS):
        why = "it has not the keys of one"
    else:
        return
    raise AccelError(f"{path} is not a benchmark's ({why}) and would be lost; give another --out, or move it away")


class Store:
    """The records of DIR/cases.jsonl. A line that is torn, or no record, is ignored, so that its case is done again."""

    def __init__(self, folder: Path):
        self.path = folder / FILE

    def records(self) -> list[dict[str, Any]]:
        """All whole records, in the order in which they were written."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise AccelError(f"{self.path} cannot be read ({error}); give another --out") from error
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if _is_record(record):
                found.append(record)
        return found

    def begin(self) -> None:
        """Make the file, which marks the folder as a benchmark's, if it is not there."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            raise AccelError(f"{self.path} cannot be written ({error}); give another --out") from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one record through to the disk; a torn line before it is closed first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _is_record(value: Any) -> bool:
    """Whether a parsed line has the keys and types that rows and tables are made from."""
    if not (_typed(value, _RECORD) and all(map(_is_row, value["rows"]))):
        return False
    try:
        case = Case.from_dict(value["case"])
        return case.layout.tokens > 0 and bool(case.runs)
    except (AccelError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_row(value: Any) -> bool:
    if not (_typed(value, _ROW) and {*_NUMBERS, *_PAIRS} <= set(value)):
        return False
    pairs = [value[key] for key in _PAIRS if value[key] is not None]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return False
    numbers = [value.get(key) for key in (*_NUMBERS, *_FURTHER)] + [x for pair in pairs for x in pair]
    return all(isinstance(x, float | int | None) for x in numbers)


def _typed(value: Any, types: dict[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in types.items())
