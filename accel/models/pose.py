"""Pose encodings: translation, XYZW quaternion and fields of view of a camera-from-world transform."""

import torch
from torch import Tensor


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """XYZW quaternion (..., 4), any non-zero length -> rotation matrix (..., 3, 3)."""
    x, y, z, w = torch.unbind(q, -1)
    s = 2 / (q * q).sum(-1).clamp_min(1e-12)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def matrix_to_quaternion(r: Tensor) -> Tensor:
    """Rotation matrix (..., 3, 3) -> unit XYZW quaternion (..., 4) with w >= 0.

    The largest of the four components is found from the diagonal and the others from it, which is stable at any angle
    (Shepperd 1978).
    """
    m = r.flatten(-2)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(-1)
    squares = torch.stack([1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22, 1 + m00 + m11 + m22], -1)
    x, y, z, w = squares.unbind(-1)
    candidates = torch.stack(
        [
            torch.stack([x, m10 + m01, m02 + m20, m21 - m12], -1),
            torch.stack([m10 + m01, y, m12 + m21, m02 - m20], -1),
            torch.stack([m20 + m02, m21 + m12, z, m10 - m01], -1),
            torch.stack([m21 - m12, m02 - m20, m10 - m01, w], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    q = torch.nn.functional.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def decode_pose(pose: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pose encoding (..., 9) -> extrinsics (..., 3, 4), camera from world, and intrinsics (..., 3, 3) in pixels.

    fx = (W/2) / tan(fov_w/2), fy = (H/2) / tan(fov_h/2), principal point at the image centre.
    """
    extrinsics = torch.cat([quaternion_to_matrix(pose[..., 3:7]), pose[..., :3, None]], dim=-1)
    intrinsics = torch.zeros(*pose.shape[:-1], 3, 3, device=pose.device, dtype=pose.dtype)
    intrinsics[..., 0, 0] = width / 2 / torch.tan(pose[..., 8] / 2).clamp_min(1e-6)
    intrinsics[..., 1, 1] = height / 2 / torch.tan(pose[..., 7] / 2).clamp_min(1e-6)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = width / 2, height / 2, 1
    return extrinsics, intrinsics


def encode_pose(extrinsics: Tensor, fov_h: Tensor, fov_w: Tensor) -> Tensor:
    """Inverse of `decode_pose` for extrinsics (..., 3, 4) and fields of view in radians (...)."""
    q = matrix_to_quaternion(extrinsics[..., :3])
    return torch.cat([extrinsics[..., 3], q, fov_h[..., None], fov_w[..., None]], dim=-1)
