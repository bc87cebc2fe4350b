"""Where a prediction comes from: revision, versions, device, dtype and seed, as attributes of a Dataset."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy
import xarray as xr


def git_revision(folder: Path = Path(__file__).parent) -> str:
    """The short commit of the checkout that holds `folder`, with "-dirty" if it was edited; "unknown" if there is none.

    A package installed in site-packages is "unknown" even where the environment lies inside somebody's checkout.
    """
    if "site-packages" in folder.parts:
        return "unknown"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    # inside a git hook these variables would point at the hook's repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


def versions(*libraries: ModuleType) -> str:
    """Versions of this distribution, Python and the given modules in one line."""
    try:
        own = metadata.version("meanfield-accel")
    except metadata.PackageNotFoundError:
        own = "unknown"
    named = (f"{module.__name__} {module.__version__}" for module in libraries)
    return ", ".join([f"meanfield-accel {own}", f"python {platform.python_version()}", *named])


def provenance(*, seed: int | None = None) -> dict[str, str | int]:
    """The attributes every prediction carries: git_revision, versions, device, dtype, seed ("none": nothing drawn)."""
    return {
        "git_revision": _own_revision(),
        "versions": versions(np, scipy, xr),
        "device": "cpu",
        "dtype": "float64",
        "seed": "none" if seed is None else int(seed),
    }


@cache
def _own_revision() -> str:
    """Asked once, so that a prediction does not wait for git."""
    return git_revision()
