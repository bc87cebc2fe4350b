import math

import pytest
import torch

from experiments.testbed import metrics

ANGLE = 1e-4  # degrees: float64 arithmetic leaves far less, float32 inputs about 1e-5


def turn(degrees: float, axis: int = 2) -> torch.Tensor:
    """Rotation about a coordinate axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = [k for k in range(3) if k != axis]
    r = torch.eye(3, dtype=torch.float64)
    r[i, i], r[j, j], r[i, j], r[j, i] = c, c, -s, s
    return r


def extrinsics(*poses) -> torch.Tensor:
    """One scene ``(1, S, 3, 4)`` from (world-from-camera rotation, centre) pairs."""
    rows = []
    for rotation, centre in poses:
        centre = torch.tensor(centre, dtype=torch.float64)
        rows.append(torch.cat([rotation.T, -(rotation.T @ centre)[:, None]], -1))
    return torch.stack(rows)[None]


def test_relative_poses_of_a_hand_made_pair():
    # camera 0 turned by 90 degrees about z at the origin; camera 1 upright at (1, 0, 0), which camera 0 sees at -y
    rotation, translation = metrics.relative_poses(extrinsics((turn(90), (0, 0, 0)), (turn(0), (1, 0, 0))))
    torch.testing.assert_close(rotation[0, 0], turn(-90))
    torch.testing.assert_close(translation[0, 0], torch.tensor([0, -1, 0], dtype=torch.float64))


@pytest.mark.parametrize("angle", [0.0, 1e-3, 1.0, 45.0, 90.0, 179.0, 180.0])
def test_rotation_angle_is_accurate_from_0_to_180(angle):
    a = turn(33, axis=0) @ turn(71, axis=1)
    assert metrics.rotation_angle(a, a @ turn(angle)).item() == pytest.approx(angle, abs=ANGLE)
    assert metrics.rotation_angle(a @ turn(angle), a).item() == pytest.approx(angle, abs=ANGLE)


def test_rotation_angle_resolves_small_angles_in_float32():
    # arccos of the trace would return 0 or 0.03 here
    assert metrics.rotation_angle(torch.eye(3), turn(0.01).float()).item() == pytest.approx(0.01, rel=1e-3)


def test_direction_angle_ignores_length_but_not_sign():
    x = torch.tensor([1.0, 0, 0])
    y = torch.tensor([0, 1.0, 0])
    assert metrics.direction_angle(x, 7 * x).item() == pytest.approx(0, abs=ANGLE)
    assert metrics.direction_angle(x, x + y).item() == pytest.approx(45, abs=ANGLE)
    assert metrics.direction_angle(x, -2 * x).item() == pytest.approx(180, abs=ANGLE)
    assert metrics.direction_angle(torch.zeros(3), x).item() == 90


def test_pose_errors_of_one_wrong_camera():
    truth = extrinsics((turn(0), (0, 0, 0)), (turn(30), (1, 0, 0)), (turn(-20), (0, 2, 0)))
    wrong = extrinsics((turn(0), (0, 0, 0)), (turn(40), (0, 1, 0)), (turn(-20), (0, 2, 0)))
    rotation, translation = metrics.pose_errors(wrong, truth)
    torch.testing.assert_close(rotation, torch.tensor([[10.0, 0, 10]]).double(), atol=ANGLE, rtol=0)
    assert translation[0, 0].item() == pytest.approx(90, abs=ANGLE)  # pair (0, 1): along y instead of x
    assert translation[0, 1].item() == pytest.approx(0, abs=ANGLE)
    # pair (1, 2), seen in camera 1: (-1, 2, 0) turned by -30 against (0, 1, 0) turned by -40 degrees
    between = math.degrees(math.atan2(2, -1)) - 30 - (90 - 40)
    assert translation[0, 2].item() == pytest.approx(between, abs=ANGLE)


def test_pose_errors_do_not_depend_on_the_world():
    generator = torch.Generator().manual_seed(0)

    def random(n):
        q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64))
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
        q = q * torch.linalg.det(q)[:, None, None]
        return [(a, c.tolist()) for a, c in zip(q, torch.randn(n, 3, generator=generator), strict=True)]

    a, b, (world,) = random(4), random(4), random(1)
    moved = [(world[0] @ r, (world[0] @ torch.tensor(c).double() + torch.tensor(world[1])).tolist()) for r, c in a]
    for x, y in zip(
        metrics.pose_errors(extrinsics(*a), extrinsics(*b)),
        metrics.pose_errors(extrinsics(*moved), extrinsics(*b)),
        strict=True,
    ):
        assert x.shape == (1, 6)
        torch.testing.assert_close(x, y, atol=ANGLE, rtol=0)


def test_auc_of_known_errors():
    zero = torch.zeros(1, 3)
    assert metrics.pose_auc(zero, zero).item() == 1
    assert metrics.pose_auc(zero + 31, zero).item() == 0
    # an error of 14.5 degrees is below k = 15 .. 30, an error of exactly 30 below none
    assert metrics.pose_auc(torch.tensor([[14.5]]), torch.tensor([[3.0]])).item() == pytest.approx(16 / 30)
    assert metrics.pose_auc(torch.tensor([[1.0]]), torch.tensor([[30.0]])).item() == 0
    torch.testing.assert_close(metrics.pose_auc(torch.tensor([[0.5, 90.0]]), torch.zeros(1, 2)), torch.tensor([0.5]))
    assert metrics.pose_auc(torch.tensor([[1.5]]), torch.zeros(1, 1), threshold=2).item() == 0.5


def test_depth_error_and_its_alignment():
    target = torch.tensor([1.0, 2, 4]).view(1, 1, 1, 3)
    assert metrics.depth_error(target * 1.5, target).item() == pytest.approx(0.5)
    assert metrics.depth_error(target * 1.5, target, align=True).item() == pytest.approx(0, abs=1e-6)
    one_off = torch.tensor([1.0, 2, 16]).view(1, 1, 1, 3)
    assert metrics.depth_error(one_off, target, align=True).item() == pytest.approx(1)
    both = metrics.depth_error(torch.cat([target, one_off]), target.expand(2, 1, 1, 3))
    torch.testing.assert_close(both, torch.tensor([0.0, 1]))


def test_point_error_is_a_mean_distance():
    target = torch.zeros(2, 1, 1, 2, 3)
    predicted = target.clone()
    predicted[1, 0, 0, 0] = torch.tensor([3.0, 4, 0])
    torch.testing.assert_close(metrics.point_error(predicted, target), torch.tensor([0, 2.5]))


def test_mean_and_error():
    mean, error = metrics.mean_and_error(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert mean == 4
    assert error == pytest.approx(math.sqrt(20 / 3) / 2)
    assert math.isnan(metrics.mean_and_error(torch.ones(1))[1])


def test_baselines():
    truth = extrinsics((turn(0), (0, 0, 0)), (turn(25), (1, 0, 0)), (turn(-20), (0, 2, 0)))
    rotation, translation = metrics.pose_errors(metrics.identity_poses(1, 3).double(), truth)
    torch.testing.assert_close(rotation, torch.tensor([[25.0, 20, 45]]).double(), atol=ANGLE, rtol=0)
    assert (translation == 90).all()
    assert metrics.pose_auc(rotation, translation).item() == 0
    depth = torch.tensor([[1.0, 2], [4.0, 8]]).view(2, 1, 1, 2)
    torch.testing.assert_close(metrics.mean_depth_map(depth), torch.tensor([[2.0, 4.0]]))


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="at least two"):
        metrics.relative_poses(metrics.identity_poses(1, 1))
    with pytest.raises(ValueError, match=r"\(B, S, 3, 4\)"):
        metrics.pose_errors(metrics.identity_poses(1, 2), metrics.identity_poses(1, 3))
