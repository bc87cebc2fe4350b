"""Values of options from what is typed; without torch, so that bad usage does not wait for it."""

from __future__ import annotations

import math
import re

from accel.errors import AccelError

MAX_FRAMES = 10_000_000
_UNITS = {"": 1, "b": 1} | {p + s: 1000**i for i, p in enumerate("kmgt", 1) for s in ("", "b")}
_UNITS |= {p + "ib": 1024**i for i, p in enumerate("kmgt", 1)}


def parse_budget(text: str | None) -> float | None:
    """A speed-up from "2x", "2" or "1.5×"."""
    if text is None:
        return None
    try:
        return float(text.strip().lower().rstrip("x×"))
    except ValueError:
        raise AccelError(f'budget "{text}" is not a speed-up; give a factor such as 2x') from None


def parse_tolerance(text: str | None) -> float | None:
    """A relative output difference from "0.02"."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise AccelError(f'tolerance "{text}" is not a number; give a relative error such as 0.02') from None


def parse_bytes(text: str | None) -> float | None:
    """Bytes from "12GB", "76 GiB", "500MB" or "8e9"; GB are 10^9 bytes and GiB 2^30."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)\s*", text.lower())
    value = float(found[1]) * _UNITS.get(found[2], math.nan) if found else math.nan
    if not 0 < value < math.inf:
        raise AccelError(f'memory "{text}" is not a size; give one such as 12GB, 76GiB or 500MB')
    return value


def parse_frames(text: str) -> list[int]:
    """Numbers of frames from "8" or "8,16,32"."""
    try:
        frames = [int(part) for part in text.split(",")]
    except ValueError:
        frames = []
    if not frames or not 1 <= min(frames) <= max(frames) <= MAX_FRAMES:
        shown = text if len(text) <= 60 else text[:60] + "..."
        raise AccelError(f'frames "{shown}" is not a list of integers from 1 to {MAX_FRAMES}; give for example 8,16,32')
    return frames


def check_device(name: str) -> None:
    """AccelError unless a model can be run on a device of this name, present or not."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise AccelError(f'device "{name}" is unknown; give cpu, cuda, cuda:0 or auto')
