"""Finished cases on disk, one JSON line each, appended at once: an interrupted benchmark loses one case at most."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from accel.errors import AccelError

FILE = "cases.jsonl"


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
            if isinstance(record, dict) and {"fingerprint", "case", "rows"} <= set(record):
                found.append(record)
        return found

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
