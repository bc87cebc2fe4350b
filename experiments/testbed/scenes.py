"""Random rooms with textured boxes, ray cast in pure torch, with exact depth and poses in VGGT's conventions.

A scene is the inside of a room and a few oriented boxes, each with a solid texture of plane waves, seen by cameras on
an arc. A pixel's ray ``c + t R (x, y, 1)`` is affine in the pixel, so slab tests and wave arguments are a few fused
passes over the image; ``t`` is the z-depth because the last component of the ray in the camera is one.

Conventions (VGGT): extrinsics are camera-from-world, the world is camera 0, axes are x right, y down, z forward,
quaternions are XYZW, and lengths are divided by the mean distance of the scene points from camera 0.
Everything random is drawn on the CPU from the generator given; the image is exact up to the supersampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from accel.models.pose import matrix_to_quaternion, quaternion_to_matrix

_NEAREST_HIT = 0.02  # scene units; a box face closer than this to the camera is not seen
_FAR = 1e9  # limit of 1/direction, which is infinite for a ray parallel to a face


@dataclass(frozen=True)
class SceneConfig:
    """Distribution of the scenes: lengths in scene units, angles in degrees, pairs are the ends of a range.

    ``boxes`` counts the room. The amplitudes of the camera motion (``azimuth``, ``elevation``, ``roll``, ``zoom``,
    ``position_jitter``, ``target_jitter``) are those at difficulty 1.
    """

    image_size: int = 64  # pixels, square
    supersample: int = 2  # rays per pixel and axis
    focal: float = 1.0  # focal length in image widths
    boxes: int = 5
    box_distance: tuple[float, float] = (0.2, 1.15)
    box_half: tuple[float, float] = (0.15, 0.5)
    room_half: tuple[float, float] = (3.0, 4.5)
    room_offset: float = 0.3
    sinusoids: int = 14
    frequency: tuple[float, float] = (1.5, 9.0)  # radians per scene unit, log-uniform
    texture_scale: tuple[float, float] = (0.6, 1.5)  # log-uniform factor of the frequencies, one per box
    room_texture_scale: float = 0.6  # further factor for the room
    brightness: tuple[float, float] = (0.55, 1.0)  # one per box and face axis
    azimuth: float = 45.0
    elevation: float = 20.0
    roll: float = 15.0
    centre_elevation: tuple[float, float] = (-25.0, 35.0)
    centre_radius: tuple[float, float] = (2.0, 2.7)
    radius: tuple[float, float] = (1.8, 2.9)  # limits after the zoom
    zoom: float = 0.22  # half-width of the log radius
    position_jitter: float = 0.15
    target_offset: float = 0.25  # of a scene
    target_jitter: float = 0.45  # of a frame

    def __post_init__(self) -> None:
        for name in ("image_size", "supersample", "boxes", "sinusoids"):
            if getattr(self, name) < 1:
                raise ValueError(f"SceneConfig.{name}={getattr(self, name)}: give a positive integer")
        if self.focal <= 0:
            raise ValueError(f"SceneConfig.focal={self.focal}: give a positive focal length in image widths")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | tuple):
                if len(value) != 2 or value[0] > value[1]:
                    raise ValueError(f"SceneConfig.{field.name}={value}: give (low, high) with low <= high")
                object.__setattr__(self, field.name, tuple(value))  # JSON brings a list


@dataclass
class Scene:
    """Parameters of ``B`` scenes with ``S`` cameras, ``K`` waves and ``M`` boxes (room first): float64, on the CPU."""

    rotation: Tensor  # (B, S, 3, 3) world-from-camera, of the scene's own world
    position: Tensor  # (B, S, 3) camera centres
    centre: Tensor  # (B, M, 3) of the boxes
    axes: Tensor  # (B, M, 3, 3) box-from-world rotations
    half: Tensor  # (B, M, 3) half sides
    waves: Tensor  # (B, K, 3) wave vectors, radians per scene unit
    scale: Tensor  # (B, M) factor of the wave vectors
    phase: Tensor  # (B, M, K)
    amplitude: Tensor  # (B, M, K, 3)
    base: Tensor  # (B, M, 3) colour before squashing, without the waves
    brightness: Tensor  # (B, M, 3) of the faces normal to each axis


@dataclass
class Batch:
    """Rendered frames and their geometry, float32; lengths in units of the mean point distance from camera 0."""

    images: Tensor  # (B, S, 3, H, W) in [0, 1]
    depth: Tensor  # (B, S, g, g) z-depth at the centres of a g x g grid of cells
    points: Tensor  # (B, S, g, g, 3) the same points in camera-0 coordinates
    extrinsics: Tensor  # (B, S, 3, 4) camera-from-world [R | t], world = camera 0
    quaternions: Tensor  # (B, S, 4) XYZW of R, w >= 0
    fov: Tensor  # (2,) field of view in height and width, radians
    scale: Tensor  # (B,) the unit of length in scene units
    full_depth: Tensor | None = None  # (B, S, H, W) z-depth at the pixel centres

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if v is None else v.to(device) for name, v in values.items()})


def sample_batch(
    generator: torch.Generator,
    batch: int,
    frames: int,
    *,
    difficulty: float = 1.0,
    config: SceneConfig | None = None,
    target_grid: int = 16,
    full_depth: bool = False,
    device: torch.device | str = "cpu",
) -> Batch:
    """Draw ``batch`` scenes and render ``frames`` views of each, with depth, points and poses in VGGT's conventions.

    ``difficulty`` multiplies the camera motion (0: all frames equal); the draws do not depend on ``device``.
    """
    config = SceneConfig() if config is None else config
    if batch < 1 or frames < 1 or target_grid < 1:
        raise ValueError(f"batch={batch}, frames={frames}, target_grid={target_grid}: give positive integers")
    scene = sample_scene(generator, batch, frames, difficulty=difficulty, config=config)
    images = render(scene, config, device=device)
    depth = cast_depth(scene, config, target_grid, device=device).view(batch, frames, target_grid, target_grid)

    # camera 0 from camera i, in float64
    first = scene.rotation[:, :1].transpose(-1, -2)
    rotation = (first @ scene.rotation).to(device)
    centre = (first @ (scene.position - scene.position[:, :1])[..., None])[..., 0].to(device)
    rays = pixel_rays(target_grid, config.focal, device=device, dtype=torch.float64)
    points = torch.einsum("bsij,bshwj->bshwi", rotation, depth[..., None].double() * rays) + centre[:, :, None, None]
    scale = points.norm(dim=-1).mean((1, 2, 3))

    inverse = rotation.transpose(-1, -2)
    extrinsics = torch.cat([inverse, -(inverse @ (centre / scale[:, None, None])[..., None])], -1)
    extrinsics[:, 0] = torch.eye(3, 4, dtype=extrinsics.dtype, device=device)
    size, unit = config.image_size, scale.float()[:, None, None, None]
    full = None
    if full_depth:
        full = cast_depth(scene, config, size, device=device).view(batch, frames, size, size) / unit
    return Batch(
        images=images.view(batch, frames, 3, size, size),
        depth=depth / unit,
        points=(points / scale[:, None, None, None, None]).float(),
        extrinsics=extrinsics.float(),
        quaternions=matrix_to_quaternion(inverse).float(),
        fov=torch.full((2,), 2 * math.atan(0.5 / config.focal), device=device),
        scale=scale.float(),
        full_depth=full,
    )


def sample_scene(
    generator: torch.Generator, batch: int, frames: int, *, difficulty: float = 1.0, config: SceneConfig
) -> Scene:
    """Draw the parameters of ``batch`` scenes with ``frames`` cameras each.

    The camera is at ``r (cos e cos a, -sin e, cos e sin a)`` plus a jitter and looks at a target near the origin.
    """
    n_boxes, n_waves = config.boxes, config.sinusoids

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    def log_uniform(low: float, high: float, *shape: int) -> Tensor:
        return uniform(math.log(low), math.log(high), *shape).exp()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def direction(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(normal(*shape, 3), dim=-1)

    axes = quaternion_to_matrix(torch.nn.functional.normalize(normal(batch, n_boxes, 4), dim=-1))
    yaw = uniform(0, 2 * math.pi, batch)
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], dim=-1)
    axes[:, 0] = turn.view(batch, 3, 3)
    centre = direction(batch, n_boxes) * uniform(*config.box_distance, batch, n_boxes, 1)
    centre[:, 0] = uniform(-config.room_offset, config.room_offset, batch, 3)
    half = uniform(*config.box_half, batch, n_boxes, 3)
    half[:, 0] = uniform(*config.room_half, batch, 3)

    frequency = log_uniform(*config.frequency, batch, n_waves, 1)
    scale = log_uniform(*config.texture_scale, batch, n_boxes)
    scale[:, 0] *= config.room_texture_scale
    amplitude = 0.35 * normal(batch, n_boxes, n_waves, 3) + 0.45 * normal(batch, n_boxes, n_waves, 1)
    amplitude *= (frequency[:, None] / 3.0) ** -0.4  # mildly weaker at high frequency

    def motion(amplitude: float, *trailing: int) -> Tensor:
        return difficulty * uniform(-amplitude, amplitude, batch, frames, *trailing)

    azimuth = uniform(0, 2 * math.pi, batch, 1) + motion(math.radians(config.azimuth))
    elevation = torch.deg2rad(uniform(*config.centre_elevation, batch, 1) + motion(config.elevation))
    radius = (uniform(*config.centre_radius, batch, 1) * motion(config.zoom).exp()).clamp(*config.radius)
    position = radius[..., None] * torch.stack(
        [elevation.cos() * azimuth.cos(), -elevation.sin(), elevation.cos() * azimuth.sin()], dim=-1
    ) + motion(config.position_jitter, 3)
    target = uniform(-config.target_offset, config.target_offset, batch, 1, 3) + motion(config.target_jitter, 3)
    return Scene(
        rotation=look_at(position, target, motion(math.radians(config.roll))),
        position=position,
        centre=centre,
        axes=axes,
        half=half,
        waves=direction(batch, n_waves) * frequency,
        scale=scale,
        phase=uniform(0, 2 * math.pi, batch, n_boxes, n_waves),
        amplitude=amplitude,
        base=0.6 * normal(batch, n_boxes, 3),
        brightness=uniform(*config.brightness, batch, n_boxes, 3),
    )


def look_at(position: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """World-from-camera rotation ``(..., 3, 3)`` with ``target`` on the z axis, y down before the roll (radians)."""
    z = torch.nn.functional.normalize(target - position, dim=-1)
    down = torch.zeros_like(z)
    down[..., 1] = 1.0
    x = torch.nn.functional.normalize(torch.linalg.cross(down, z), dim=-1)
    y = torch.linalg.cross(z, x)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([cos * x + sin * y, cos * y - sin * x, z], dim=-1)


def pixel_rays(size: int, focal: float, **kwargs) -> Tensor:
    """Rays ``((i + 1/2)/size - 1/2)/focal`` through cell centres, (x, y, 1), ``(size, size, 3)`` by row, column."""
    u = pixel_axis(size, focal, **kwargs)
    return torch.stack([u.expand(size, size), u[:, None].expand(size, size), torch.ones_like(u).expand(size, size)], -1)


def pixel_axis(size: int, focal: float, **kwargs) -> Tensor:
    """Coordinates of the centres of ``size`` cells on the image plane at z = 1, ``(size,)``."""
    return ((torch.arange(size, **kwargs) + 0.5) / size - 0.5) / focal


def cast_depth(scene: Scene, config: SceneConfig, size: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Exact z-depth ``(B*S, size, size)`` in scene units at the centres of ``size x size`` cells, float32."""
    u = pixel_axis(size, config.focal, device=device)
    n_frames = scene.position.shape[0] * scene.position.shape[1]
    step = _chunk(size, n_frames, device)
    offset, slope, half = (x.to(device) for x in _in_boxes(scene))
    work = torch.empty(2, step, config.boxes, 3, size, size, device=device)
    chunks = [slice(i, i + step) for i in range(0, n_frames, step)]
    return torch.cat([_cast(offset[now], slope[now], half[now], u, work)[0] for now in chunks])


def render(scene: Scene, config: SceneConfig, *, device: torch.device | str = "cpu") -> Tensor:
    """Images ``(B*S, 3, H, W)``: ``b (1 + r / sqrt(1 + r^2)) / 2`` with ``r = base + sum_k a_k sin(s w_k.p + phi_k)``.

    The wave arguments and the sum over waves are two small matrix products per frame. With ``p = c + t R ray``
    the argument is linear in ``(s t ray, e_box)``, where ``s`` is the texture scale and ``e_box`` the indicator.
    """
    n_boxes, n_waves, size = config.boxes, config.sinusoids, config.image_size
    frames = scene.position.shape[1]

    def per_frame(x: Tensor) -> Tensor:
        return x.repeat_interleave(frames, 0).float().to(device)

    along = scene.waves[:, None] @ scene.rotation  # (B, S, K, 3)
    at_camera = scene.waves[:, None] @ scene.position[..., None]  # (B, S, K, 1)
    constant = scene.phase.mT[:, None] + at_camera * scene.scale[:, None, None]  # (B, S, K, M)
    argument = torch.cat([along, constant.remainder(2 * math.pi)], -1).flatten(0, 1).float().to(device)
    mix = per_frame(scene.amplitude.transpose(-1, -2).reshape(-1, 3 * n_boxes, n_waves))
    base, bright, scale = per_frame(scene.base.mT), per_frame(scene.brightness.flatten(1)), per_frame(scene.scale)
    offset, slope, half = (x.to(device) for x in _in_boxes(scene))

    side = size * config.supersample
    u = pixel_axis(side, config.focal, device=device)
    out = torch.empty(offset.shape[0], 3, size, size, device=device)
    step = _chunk(side, len(out), device)
    work = torch.empty(2, step, n_boxes, 3, side, side, device=device)
    waves = torch.empty(step, n_waves, side * side, device=device)
    spare = torch.empty(2, step, 3, side * side, device=device)
    features = torch.empty(step, 3 + n_boxes, side * side, device=device)
    for i in range(0, len(out), step):
        now = slice(i, i + step)
        depth, face = _cast(offset[now], slope[now], half[now], u, work)
        n = len(depth)
        face = face.view(n, -1).long()
        box = face // 3
        feature = features[:n]
        own = feature[:, 3:].zero_().scatter_(1, box[:, None], 1.0)
        st = depth * scale[now].gather(1, box).view_as(depth)
        torch.mul(st, u, out=feature[:, 0].view_as(st))
        torch.mul(st, u[:, None], out=feature[:, 1].view_as(st))
        feature[:, 2] = st.flatten(1)
        wave = torch.bmm(argument[now], feature, out=waves[:n]).sin_()
        every = torch.bmm(mix[now], wave, out=work[0, :n].view(n, 3 * n_boxes, -1)).view(n, n_boxes, 3, -1)
        colour, squash = spare[0, :n], spare[1, :n]
        torch.gather(every, 1, box[:, None, None].expand(-1, 1, 3, -1), out=colour[:, None])
        colour.baddbmm_(base[now], own)
        torch.mul(colour, colour, out=squash).add_(1.0).rsqrt_()
        colour.mul_(squash).add_(1.0).mul_(bright[now].gather(1, face).mul_(0.5)[:, None])
        out[now] = torch.nn.functional.avg_pool2d(colour.view(n, 3, side, side), config.supersample)
    return out


def _chunk(side: int, frames: int, device: torch.device | str) -> int:
    """Frames per pass: 2^15 rays on a CPU (the fastest of 2^14 to 2^16 on one core), 2^22 on a GPU."""
    rays = 2**15 if torch.device(device).type == "cpu" else 2**22
    return max(1, min(frames, rays // side**2))


def _in_boxes(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Cameras in box frames, float32: origins and half sides ``(B*S, M, 3)``, ray slopes ``(B*S, M, 3, 3)``."""
    offset = (scene.axes[:, None] @ (scene.position[:, :, None] - scene.centre[:, None])[..., None])[..., 0]
    slope = scene.axes[:, None] @ scene.rotation[:, :, None]
    half = scene.half[:, None].expand_as(offset)
    return tuple(x.flatten(0, 1).float() for x in (offset, slope, half))


def _cast(offset: Tensor, slope: Tensor, half: Tensor, u: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """First hit of the rays ``(u_x, u_y, 1)``: z-depth ``(n, len(u), len(u))`` and face ``3 box + axis`` (uint8).

    Slab test: along each axis a ray ``o + t d`` is between the faces for ``t`` in ``(-o -+ h sign d)/d``; the room is
    left at the first of the far ends, a box is entered at the last of the near ends unless a far end comes before.
    ``work (2, n or more, M, 3, len(u), len(u))`` is overwritten: fresh memory would cost more than the arithmetic.
    """
    dx, dy, dz = (slope[..., i] for i in range(3))  # (n, M, 3)
    columns, rows = (dx[..., None] * u)[..., None, :], (dy[..., None] * u + dz[..., None])[..., None]
    inverse = torch.add(columns, rows, out=work[0, : len(offset)]).reciprocal_()  # (n, M, 3, y, x)
    inverse.clamp_(-_FAR, _FAR)
    far = torch.abs(inverse, out=work[1, : len(offset)]).mul_(half[..., None, None])
    middle = inverse.mul_(offset[..., None, None])
    far.sub_(middle)
    near = middle[:, 1:].mul_(-2).sub_(far[:, 1:])

    a, b, c = far[:, 0].unbind(1)
    best = torch.minimum(a, b)
    face = (b < a).view(torch.uint8).masked_fill_(c < best, 2)
    best = torch.minimum(best, c)
    for i in range(near.shape[1]):
        a, b, c = near[:, i].unbind(1)
        enter = torch.maximum(a, b)
        entered = (b > a).view(torch.uint8).masked_fill_(c > enter, 2).add_(3 * (i + 1))
        enter = torch.maximum(enter, c)
        a, b, c = far[:, i + 1].unbind(1)
        leave = torch.minimum(torch.minimum(a, b), c)
        hit = (enter <= torch.minimum(leave, best)).logical_and_(enter > _NEAREST_HIT)
        best = torch.where(hit, enter, best)
        face = torch.where(hit, entered, face)
    return best, face
