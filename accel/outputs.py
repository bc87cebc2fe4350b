"""How different two predictions of a model are: the scalar that the planner trades against time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from accel.errors import AccelError

_LEAST_MOTION = 1e-2
"""Translations are compared on the scale of their mean, but at least on this share of the mean distance of points."""


def output_difference(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative differences of two VGGT predictions of the same images; 0 for equal ones.

    depth        mean |d - d0| / d0 over the pixels
    points       mean |p - p0| / mean |p0|
    rotation     mean angle between the orientations, radians
    translation  mean |t - t0| / max(mean |t0|, mean |p0| / 100) (frame 0 and a still camera have t0 = 0)
    total        mean of depth, points and camera = (rotation + translation)/2, each counted as at most 1 ("all wrong"),
                 so that it lies in [0, 1]

    Means are over batch and frames. A part that is not finite in `other` is inf (1 in the total); one that is not
    finite in `reference` raises AccelError. No alignment: both predictions are in the frame of camera 0.
    """
    parts = {}
    for name in ("depth", "world_points", "pose_enc"):
        if name not in reference or name not in other:
            raise AccelError(f"predictions have no {name!r}, only {sorted(set(reference) & set(other))}")
        if reference[name].shape != other[name].shape:
            shapes = f"{tuple(reference[name].shape)} and {tuple(other[name].shape)}"
            raise AccelError(f"{name} have shapes {shapes}; compare predictions of the same images")
        if not torch.isfinite(reference[name]).all():
            raise AccelError(f"the reference prediction has NaN or infinity in {name}; check weights and images")
        parts[name] = reference[name].double(), other[name].double()
    d0, d = parts["depth"]
    p0, p = parts["world_points"]
    t0, t = (x[..., :3] for x in parts["pose_enc"])
    scale = _length(p0).mean()
    floor = torch.finfo(torch.float64).tiny
    found = {
        "depth": ((d - d0).abs() / d0.abs().clamp_min(floor)).mean(),
        "points": _length(p - p0).mean() / scale.clamp_min(floor),
        "rotation": _angle(*(x[..., 3:7] for x in parts["pose_enc"])).mean(),
        "translation": _length(t - t0).mean() / torch.maximum(_length(t0).mean(), _LEAST_MOTION * scale + floor),
    }
    values = {name: x.item() if torch.isfinite(x) else float("inf") for name, x in found.items()}
    camera = (values["rotation"] + values["translation"]) / 2
    return values | {"total": sum(min(x, 1.0) for x in (values["depth"], values["points"], camera)) / 3}


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rotations, quaternions (..., 4) of any non-zero length: 4 atan2(|a - b|, |a + b|)."""
    a, b = (x / _length(x).clamp_min(1e-12).unsqueeze(-1) for x in (a, b))
    near, far = _length(a - b), _length(a + b)
    return 4 * torch.atan2(torch.minimum(near, far), torch.maximum(near, far))
