"""Errors of predicted poses, depths and points, and the predictors that know nothing, which a model has to beat.

Poses are camera-from-world extrinsics ``[R | t] (B, S, 3, 4)``; all pairs ``i < j`` of frames are compared, so that the
choice of world does not matter. Angles are in degrees. Errors come per scene, ``(B,)`` or ``(B, pairs)``: their mean is
the number to report and their spread over scenes gives its standard error (`mean_and_error`).
Source: Wang et al., VGGT (CVPR 2025), AUC@30 as there, except that the sign of the translation counts here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_poses(extrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pose of camera j in camera i: ``R_i R_j^T (B, pairs, 3, 3)`` and ``t_i - R_i R_j^T t_j (B, pairs, 3)``."""
    frames = extrinsics.shape[1]
    if frames < 2:
        raise ValueError(f"{frames} frame has no relative pose: give at least two")
    i, j = torch.triu_indices(frames, frames, 1, device=extrinsics.device)
    rotation = extrinsics[:, i, :, :3] @ extrinsics[:, j, :, :3].mT
    return rotation, extrinsics[:, i, :, 3] - (rotation @ extrinsics[:, j, :, 3:])[..., 0]


def rotation_angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle in degrees between rotations ``(..., 3, 3)``: ``atan2(2 sin, 2 cos)`` of ``a^T b``, accurate near 0 too."""
    r = a.mT @ b
    sine = torch.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1)
    return torch.rad2deg(torch.atan2(sine.norm(dim=-1), r.diagonal(dim1=-2, dim2=-1).sum(-1) - 1))


def direction_angle(a: Tensor, b: Tensor, *, shortest: float = 1e-6) -> Tensor:
    """Angle in degrees between vectors ``(..., 3)``; 90, a random guess, where one is not longer than ``shortest``."""
    angle = torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)))
    return torch.where(torch.minimum(a.norm(dim=-1), b.norm(dim=-1)) > shortest, angle, 90.0)


def pose_errors(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of rotation and of translation direction over all pairs of frames, degrees, each ``(B, pairs)``."""
    if predicted.shape != target.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)}: give (B, S, 3, 4) both")
    (r_hat, t_hat), (r, t) = relative_poses(predicted), relative_poses(target)
    return rotation_angle(r_hat, r), direction_angle(t_hat, t)


def pose_auc(rotation: Tensor, translation: Tensor, *, threshold: int = 30) -> Tensor:
    """AUC@threshold per scene ``(B,)``: mean over ``k = 1 .. threshold`` of the share of pairs with both errors < k."""
    worst = torch.maximum(rotation, translation)
    k = torch.arange(1, threshold + 1, device=worst.device)
    return (worst[..., None] < k).float().mean((-2, -1))


def depth_error(predicted: Tensor, target: Tensor, *, align: bool = False) -> Tensor:
    """Mean ``|d^ - d| / d`` per scene ``(B,)`` of depths ``(B, S, h, w)``; ``align`` scales by median ``d / d^``."""
    predicted, target = predicted.flatten(1), target.flatten(1)
    if align:
        predicted = predicted * (target / predicted).median(1, keepdim=True).values
    return ((predicted - target).abs() / target).mean(1)


def point_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance per scene ``(B,)`` of points ``(B, ..., 3)``, in the unit of the points."""
    return (predicted - target).norm(dim=-1).flatten(1).mean(1)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over scenes ``(B,)`` and its standard error ``std / sqrt(B)`` (nan for a single scene)."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return values.mean().item(), error


def identity_poses(batch: int, frames: int) -> Tensor:
    """Baseline: every camera is camera 0, ``(B, S, 3, 4)``; the rotation errors are then the relative rotations."""
    return torch.eye(3, 4).expand(batch, frames, 3, 4).clone()


def mean_depth_map(depth: Tensor) -> Tensor:
    """Baseline: ``exp(mean log d)`` over scenes and frames of training depths ``(B, S, h, w)``, a map ``(h, w)``."""
    return depth.log().mean((0, 1)).exp()
