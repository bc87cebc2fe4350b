"""What each rank writes of a prediction as soon as it has it, and the whole made of these parts."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from accel.errors import AccelError


def part_path(folder: Path, rank: int) -> Path:
    """Where a rank writes its part."""
    return folder / f"part-{rank:05d}.npz"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    unfinished = path.with_name(path.name + ".writing")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(unfinished, path)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    unfinished = path.with_name(path.name + ".writing")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def clear(folder: Path) -> None:
    """Take away the parts of an earlier run."""
    for path in folder.glob("part-*.npz*"):
        path.unlink()


def assemble(folder: Path, ranks: int) -> dict[str, np.ndarray]:
    """The parts of all ranks, joined along the frames; AccelError for one that is missing or unreadable."""
    parts = [_read(part_path(folder, rank)) for rank in range(ranks)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def complete(folder: Path) -> list[str]:
    """The names of the parts that are there."""
    return sorted(path.name for path in folder.glob("part-*.npz"))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return dict(file)
    except FileNotFoundError:
        raise AccelError(f"{path} is not here; --out must be a folder that all nodes share") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise AccelError(f"{path} cannot be read ({error}); start the same command again") from error
