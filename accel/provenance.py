"""Where a result comes from: revision, versions, device, dtype and seed, as attributes of a Dataset."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch


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


def versions() -> str:
    """Versions of this distribution, Python, torch and numpy in one line."""
    try:
        own = version("meanfield-accel")
    except PackageNotFoundError:
        own = "unknown"
    return (
        f"meanfield-accel {own}, python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )


def provenance(*, device: object = "cpu", dtype: object = "float64", seed: int | None = None) -> dict[str, str | int]:
    """The attributes that every Dataset carries; values are strings or integers, so that netCDF takes them."""
    return {
        "git_revision": git_revision(),
        "versions": versions(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": "none" if seed is None else int(seed),
    }
