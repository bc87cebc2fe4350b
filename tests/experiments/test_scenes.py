import json
import math
from dataclasses import asdict, fields

import pytest
import torch

from experiments.testbed import scenes
from experiments.testbed.scenes import SceneConfig, sample_batch

GEOMETRY = 1e-5  # float32 points of order one: about 100 roundings
COLOUR = 2e-4  # float32 wave arguments reach 50 rad, off by up to 50 * 2^-23 each, times 14 waves of slope about one


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch() -> scenes.Batch:
    return sample_batch(seeded(), 3, 4, full_depth=True)


def tensors(batch: scenes.Batch) -> dict[str, torch.Tensor]:
    return {f.name: getattr(batch, f.name) for f in fields(batch) if getattr(batch, f.name) is not None}


def naive_ray(scene: scenes.Scene, b: int, s: int, x: float, y: float) -> tuple[float, torch.Tensor]:
    """Depth and colour of one ray in float64, box by box and wave by wave: twin of ``render`` and ``cast_depth``."""
    origin = scene.position[b, s]
    ray = scene.rotation[b, s] @ torch.tensor([x, y, 1.0], dtype=torch.float64)
    best, hit = math.inf, (0, 0)
    for m in range(scene.half.shape[1]):
        o, d = scene.axes[b, m] @ (origin - scene.centre[b, m]), scene.axes[b, m] @ ray
        ends = torch.stack([(-o - scene.half[b, m]) / d, (-o + scene.half[b, m]) / d]).sort(0).values
        t, axis = ends[1].min(0) if m == 0 else ends[0].max(0)
        if t < best and (m == 0 or (t <= ends[1].min() and t > 0.02)):
            best, hit = t.item(), (m, axis.item())
    point, (m, axis) = origin + best * ray, hit
    r = scene.base[b, m].clone()
    for k in range(scene.waves.shape[1]):
        angle = scene.scale[b, m] * (scene.waves[b, k] @ point) + scene.phase[b, m, k]
        r += scene.amplitude[b, m, k] * torch.sin(angle)
    return best, scene.brightness[b, m, axis] * 0.5 * (1 + r / torch.sqrt(1 + r**2))


def test_render_and_depth_equal_the_naive_ray_caster():
    config = SceneConfig(image_size=14, supersample=1)
    scene = scenes.sample_scene(seeded(5), 2, 2, config=config)
    image = scenes.render(scene, config).view(2, 2, 3, 14, 14)
    depth = scenes.cast_depth(scene, config, 14).view(2, 2, 14, 14)
    seen = set()
    for b, s, row, column in [(b, s, i, j) for b in range(2) for s in range(2) for i in range(14) for j in range(14)]:
        x, y = ((v + 0.5) / 14 - 0.5 for v in (column, row))
        t, colour = naive_ray(scene, b, s, x, y)
        seen.add(t > 3)
        assert depth[b, s, row, column].item() == pytest.approx(t, abs=GEOMETRY)
        torch.testing.assert_close(image[b, s, :, row, column].double(), colour, atol=COLOUR, rtol=0)
    assert seen == {True, False}  # the room and the boxes were both compared


def test_rays_parallel_to_faces_have_finite_depth():
    # box axes, camera axes and, through the centre of an odd image, rays coincide: directions of exactly zero
    config = SceneConfig(image_size=5, supersample=1, boxes=3)
    scene = scenes.sample_scene(seeded(), 1, 1, config=config)
    scene.rotation[:], scene.axes[:] = torch.eye(3), torch.eye(3)
    scene.position[:] = torch.tensor([0.0, 0, -2])
    scene.centre[:] = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 2, 0]])
    scene.half[:] = torch.tensor([[3.0, 3, 3], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    depth = scenes.cast_depth(scene, config, 5)[0]
    assert depth[2, 2].item() == pytest.approx(1.5)  # the box ahead; the one beside is missed by the middle row
    assert depth[2, 0].item() == pytest.approx(5)  # the far wall
    assert scenes.render(scene, config).isfinite().all()
    scene.position[:] = torch.tensor([0.5, 0, -2])  # along a face, zero times infinity in the slab test
    assert scenes.cast_depth(scene, config, 5).isfinite().all()
    scene.position[:] = torch.tensor([0.0, 0, 2])  # the boxes are behind the camera
    torch.testing.assert_close(scenes.cast_depth(scene, config, 5), torch.ones(1, 5, 5))


def test_shapes_ranges_and_field_of_view(batch):
    assert batch.images.shape == (3, 4, 3, 64, 64)
    assert batch.depth.shape == (3, 4, 16, 16)
    assert batch.points.shape == (3, 4, 16, 16, 3)
    assert batch.extrinsics.shape == (3, 4, 3, 4)
    assert batch.quaternions.shape == (3, 4, 4)
    assert batch.full_depth.shape == (3, 4, 64, 64)
    assert batch.scale.shape == (3,)
    assert {t.dtype for t in tensors(batch).values()} == {torch.float32}
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert batch.images.std() > 0.1
    assert batch.depth.min() > 0
    assert batch.fov.tolist() == pytest.approx([2 * math.atan(0.5)] * 2)
    assert sample_batch(seeded(), 1, 1).full_depth is None


def test_same_seed_same_batch_and_global_generator_untouched(batch):
    before = torch.get_rng_state()
    again = sample_batch(seeded(), 3, 4, full_depth=True)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in tensors(batch).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(sample_batch(seeded(1), 3, 4).images, batch.images)


def test_frame_0_is_the_world(batch):
    assert torch.equal(batch.extrinsics[:, 0], torch.eye(3, 4).expand(3, 3, 4))
    torch.testing.assert_close(batch.quaternions[:, 0], torch.tensor([[0.0, 0, 0, 1]]).expand(3, 4))
    rays = scenes.pixel_rays(16, 1.0)
    torch.testing.assert_close(batch.points[:, 0], batch.depth[:, 0, ..., None] * rays, atol=GEOMETRY, rtol=0)


def test_unit_of_length_is_the_mean_point_distance(batch):
    torch.testing.assert_close(batch.points.norm(dim=-1).mean((1, 2, 3)), torch.ones(3), atol=GEOMETRY, rtol=0)
    scene = scenes.sample_scene(seeded(), 3, 4, config=SceneConfig())
    depth = scenes.cast_depth(scene, SceneConfig(), 16).view(3, 4, 16, 16)
    torch.testing.assert_close(batch.depth * batch.scale[:, None, None, None], depth)
    baseline = (scene.position - scene.position[:, :1]).norm(dim=-1).float()
    torch.testing.assert_close(batch.extrinsics[..., 3].norm(dim=-1) * batch.scale[:, None], baseline)


def test_points_project_to_their_pixels_in_their_own_frame(batch):
    rotation, translation = batch.extrinsics[..., :3], batch.extrinsics[..., 3]
    inside = torch.einsum("bsij,bshwj->bshwi", rotation, batch.points) + translation[:, :, None, None]
    expected = batch.depth[..., None] * scenes.pixel_rays(16, 1.0)
    torch.testing.assert_close(inside, expected, atol=GEOMETRY, rtol=0)


def test_a_point_seen_by_two_cameras_has_one_depth_and_one_colour():
    config = SceneConfig(image_size=128, supersample=1)
    batch = sample_batch(seeded(2), 4, 3, config=config, full_depth=True, difficulty=0.7)
    difference, unrelated = [], []
    for i, j in [(1, 0), (0, 2), (2, 1)]:
        (r_i, t_i), (r_j, t_j) = ((batch.extrinsics[:, k, :, :3], batch.extrinsics[:, k, :, 3:]) for k in (i, j))
        own = (batch.full_depth[:, i, ..., None] * scenes.pixel_rays(128, config.focal)).flatten(1, 2).mT
        seen = r_j @ (r_i.mT @ (own - t_i)) + t_j  # (4, 3, n), in camera j
        at = 2 * config.focal * (seen[:, :2] / seen[:, 2:]).mT[:, None]  # in [-1, 1] for grid_sample
        frame = torch.cat([batch.images[:, j], batch.full_depth[:, j, None]], 1)
        sampled = torch.nn.functional.grid_sample(frame, at, align_corners=False)[:, :, 0]
        visible = (at.abs().amax(-1)[:, 0] < 0.99) & (seen[:, 2] > 0)
        visible &= (sampled[:, 3] / seen[:, 2] - 1).abs() < 0.01
        assert visible.float().mean() > 0.2
        colour = batch.images[:, i].flatten(2)
        difference.append((sampled[:, :3] - colour).abs().mean(1)[visible])
        unrelated.append((sampled[:, :3].roll(1, 0) - colour).abs().mean(1)[visible])
    assert torch.cat(difference).median() < 0.01
    assert torch.cat(difference).quantile(0.9) < 0.1
    assert torch.cat(unrelated).median() > 0.1


def test_quaternions_are_those_of_the_extrinsics(batch):
    rotation = batch.extrinsics[..., :3]
    torch.testing.assert_close(scenes.quaternion_to_matrix(batch.quaternions), rotation, atol=GEOMETRY, rtol=0)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=GEOMETRY, rtol=0)
    assert (batch.quaternions[..., 3] >= 0).all()


def test_quaternion_of_every_angle_and_convention():
    half = math.sqrt(0.5)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x to y about z
    torch.testing.assert_close(scenes.matrix_to_quaternion(quarter), torch.tensor([0, 0, half, half]))
    axis = torch.nn.functional.normalize(torch.randn(200, 3, generator=seeded(), dtype=torch.float64), dim=-1)
    angle = torch.linspace(0, math.pi, 200, dtype=torch.float64)[:, None]  # up to half turns
    q = torch.cat([axis * (angle / 2).sin(), (angle / 2).cos()], -1)
    found = scenes.matrix_to_quaternion(scenes.quaternion_to_matrix(q))
    found = found * (found * q).sum(-1, keepdim=True).sign()  # q and -q are one rotation at half a turn
    torch.testing.assert_close(found, q)


def test_supersampling_averages_rays():
    coarse, fine = SceneConfig(image_size=16, supersample=2), SceneConfig(image_size=32, supersample=1)
    scene = scenes.sample_scene(seeded(), 1, 3, config=coarse)
    averaged = torch.nn.functional.avg_pool2d(scenes.render(scene, fine), 2)
    torch.testing.assert_close(scenes.render(scene, coarse), averaged, atol=GEOMETRY, rtol=0)


def test_frames_do_not_depend_on_the_chunk(monkeypatch):
    config = SceneConfig(image_size=16)
    scene = scenes.sample_scene(seeded(), 2, 5, config=config)
    images, depth = scenes.render(scene, config), scenes.cast_depth(scene, config, 16)
    monkeypatch.setattr(scenes, "_chunk", lambda *_: 3)  # the last pass is shorter
    torch.testing.assert_close(scenes.render(scene, config), images, atol=GEOMETRY, rtol=0)
    torch.testing.assert_close(scenes.cast_depth(scene, config, 16), depth, atol=GEOMETRY, rtol=0)


def test_difficulty_scales_the_motion():
    still = sample_batch(seeded(), 2, 3, difficulty=0.0)
    torch.testing.assert_close(still.images, still.images[:, :1].expand_as(still.images), atol=COLOUR, rtol=0)
    torch.testing.assert_close(still.extrinsics, torch.eye(3, 4).expand(2, 3, 3, 4), atol=GEOMETRY, rtol=0)
    spread = [sample_batch(seeded(), 8, 4, difficulty=d).quaternions[..., :3].norm(dim=-1).mean() for d in (0.3, 1.0)]
    assert 2 < spread[1] / spread[0] < 5


def test_motion_is_as_large_as_the_recipe_says():
    config = SceneConfig(image_size=8, supersample=1)
    q = sample_batch(seeded(), 300, 2, config=config, target_grid=4).quaternions[:, 1]
    angle = torch.rad2deg(2 * torch.atan2(q[:, :3].norm(dim=-1), q[:, 3]))
    assert 33 < angle.median() < 41  # the recipe: median relative rotation 37 degrees


def test_autocast_does_not_change_the_scenes(batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = sample_batch(seeded(), 3, 4, full_depth=True)
    for name, value in tensors(batch).items():
        assert torch.equal(value, getattr(again, name)), name


def test_everything_is_made_on_the_device_asked_for():
    # the meta device runs every operation without values and refuses a mixture of devices
    batch = sample_batch(seeded(), 2, 3, full_depth=True, device="meta")
    assert {t.device.type for t in tensors(batch).values()} == {"meta"}


def test_a_room_alone_and_another_focal_length():
    config = SceneConfig(image_size=8, boxes=1, sinusoids=3, focal=0.7)
    batch = sample_batch(seeded(), 2, 2, config=config, target_grid=5)
    assert batch.images.isfinite().all()
    assert batch.fov[0].item() == pytest.approx(2 * math.atan(0.5 / 0.7))
    edge = scenes.pixel_axis(10_000, 0.7)[-1].item()  # nearly at the edge of the field of view
    assert math.atan(edge) == pytest.approx(batch.fov[0].item() / 2, rel=1e-3)
    torch.testing.assert_close(
        batch.points[:, 0], batch.depth[:, 0, ..., None] * scenes.pixel_rays(5, 0.7), atol=GEOMETRY, rtol=0
    )


def test_batch_moves_as_one(batch):
    moved = sample_batch(seeded(), 1, 2).to("meta")
    assert moved.images.device.type == "meta"
    assert moved.full_depth is None


def test_config_json_round_trip_and_validation():
    config = SceneConfig(image_size=112, frequency=(2.0, 5.0))
    assert SceneConfig(**json.loads(json.dumps(asdict(config)))) == config
    with pytest.raises(ValueError, match="image_size=0"):
        SceneConfig(image_size=0)
    with pytest.raises(ValueError, match="low <= high"):
        SceneConfig(frequency=(9.0, 1.5))
    with pytest.raises(ValueError, match="focal"):
        SceneConfig(focal=0.0)
    with pytest.raises(ValueError, match="frames=0"):
        sample_batch(seeded(), 1, 0)
