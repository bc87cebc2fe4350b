"""Where a result comes from: revision, versions, device, dtype and seed, as attributes of a Dataset."""

import numpy as np
import torch

from meanfield.provenance import git_revision, versions


def provenance(*, device: object = "cpu", dtype: object = "float64", seed: int | None = None) -> dict[str, str | int]:
    """The attributes that every Dataset carries; values are strings or integers, so that netCDF takes them."""
    return {
        "git_revision": git_revision(),
        "versions": versions(torch, np),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": "none" if seed is None else int(seed),
    }
