"""What the testbed is trained on: VGGT's own outputs, and auxiliary heads that are dropped afterwards."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.models.config import VGGTConfig
from accel.models.vggt import VGGT
from experiments.testbed.scenes import Batch

MATCH_LAYER = 2  # features after the frame block of this pair are matched between frames
TARGET_GRID = 32


class TrainingModel(nn.Module):
    """A VGGT with the auxiliary heads of training: a linear dense head, and a projection for patch matching.

    The linear head predicts log-depth, points and where each point lands in frame 0 ("flow"), on a coarse grid. The
    recipe needs the flow and matching losses to leave the mean pose (docs/testbed.md). Only `self.vggt` is exported.
    """

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.vggt = VGGT(config)
        dim, self.cells = config.embed_dim, TARGET_GRID // (config.image_size // config.patch_size)
        self.norm = nn.LayerNorm(2 * dim)
        self.linear = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 6 * self.cells**2))
        self.match = nn.Linear(dim, 32)
        self.matched = None
        self.vggt.aggregator.frame_blocks[MATCH_LAYER].register_forward_hook(self._keep)

    def _keep(self, _module, _args, output):
        self.matched = output

    def forward(self, images: Tensor, dense_frames: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Predictions of all heads; the DPT heads see `dense_frames` random frames of the batch, `rows` says which."""
        config, (B, S) = self.vggt.config, images.shape[:2]
        kept = self.vggt.aggregator(images)
        special = config.special_tokens
        grid = config.image_size // config.patch_size
        with torch.autocast(images.device.type, enabled=False):
            last = kept[config.depth - 1].float()
            out = {"pose_enc": self.vggt.camera_head(last[:, :, 0])}
            dense = self.linear(self.norm(last[:, :, special:]))
            dense = (
                dense.view(B, S, grid, grid, self.cells, self.cells, 6)
                .transpose(3, 4)
                .reshape(B, S, TARGET_GRID, TARGET_GRID, 6)
            )
            out |= {"log_depth": dense[..., 0], "points": dense[..., 1:4], "landing": dense[..., 4:]}
            out["features"] = self.match(self.matched[:, special:].float()).view(B, S, grid, grid, -1)
            rows = torch.randperm(B * S, generator=generator)[:dense_frames]
            chosen = {k: x.flatten(0, 1)[rows][None] for k, x in kept.items() if k in config.dpt_layers}
            size = images.shape[-2:]
            out["dpt_depth"] = self.vggt.depth_head(chosen, *size, special, len(rows))[0][0, ..., 0]
            out["dpt_points"] = self.vggt.point_head(chosen, *size, special, len(rows))[0][0]
            out["rows"] = rows
        return out


def initialise(model: TrainingModel, generator: torch.Generator) -> None:
    """Truncated normal of standard deviation .7/sqrt(fan-in) for linear maps, sine-cosine position embedding,
    output layers scaled down so that training starts at the mean pose and mean depth."""
    vggt = model.vggt
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.7 * module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        aggregator = vggt.aggregator
        for token in (aggregator.camera_token, aggregator.register_token):
            token.copy_(0.5 * torch.randn(token.shape, generator=generator))
        vit = aggregator.patch_embed
        dim, grid = vggt.config.embed_dim, vit.grid
        omega = 20.0 ** -(torch.arange(dim // 4) / (dim // 4))
        angle = torch.arange(1, grid + 1)[:, None] * omega
        wave = torch.cat([angle.sin(), angle.cos()], dim=1)
        rows, columns = wave.repeat_interleave(grid, 0), wave.repeat(grid, 1)
        vit.pos_embed[0, 1:] = torch.cat([rows, columns], dim=1)
        for layer in (vggt.camera_head.pose_branch.fc2, model.linear[2]):
            layer.weight.mul_(0.1)
        vggt.camera_head.pose_branch.fc2.bias[6:] = torch.tensor([1.0, 0.9, 0.9])
        vggt.camera_head.poseLN_modulation[1].weight.mul_(0.1)
        for head in (vggt.depth_head, vggt.point_head):
            head.scratch.output_conv2[2].weight.mul_(0.3)


def pose_distance(prediction: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(prediction, target, beta=0.02, reduction="none").sum(-1).mean()


def objective(out: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of pose, depth, points, flow and matching losses, and each of them unweighted.

    3 translation + 4 quaternion + field of view + log-depth + 2 points + 4 flow + matching, plus log-depth and 2 points
    of the DPT heads on their frames.
    """
    S = batch.depth.shape[1]
    translation, quaternion = batch.extrinsics[..., 3], batch.quaternions
    predicted = F.normalize(out["pose_enc"][..., 3:7], dim=-1)
    losses = {
        "translation": pose_distance(out["pose_enc"][..., :3], translation),
        "quaternion": pose_distance(predicted, quaternion),
        "fov": (out["pose_enc"][..., 7:] - batch.fov).abs().mean(),
        "depth": (out["log_depth"] - 0.2 - batch.depth.log()).abs().mean(),
        "points": (out["points"] - batch.points).abs().mean(),
    }
    rows = out["rows"]
    truth_depth, truth_points = batch.depth.flatten(0, 1)[rows], batch.points.flatten(0, 1)[rows]
    # A target cell is two pixels wide and its centre their common corner: the mean of the four is compared with it.
    log_depth = F.avg_pool2d(out["dpt_depth"].log()[:, None], 2)[:, 0]
    points = F.avg_pool2d(out["dpt_points"].permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    losses["dpt_depth"] = (log_depth - truth_depth.log()).abs().mean()
    losses["dpt_points"] = (points - truth_points).abs().mean()
    losses["flow"] = flow_loss(out["landing"], batch.points)
    losses["matching"] = matching_loss(out["features"], batch.points) if S > 1 else torch.zeros(())
    weights = {"translation": 3, "quaternion": 4, "points": 2, "dpt_points": 2, "flow": 4}
    total = sum(weights.get(name, 1) * value for name, value in losses.items())
    scalars = {name: float(value.detach()) for name, value in losses.items()}
    if S > 1:
        identity = torch.zeros_like(quaternion)
        identity[..., 3] = 1
        baseline_q = pose_distance(identity, quaternion).clamp_min(1e-4)
        baseline_t = pose_distance(torch.zeros_like(translation), translation).clamp_min(1e-4)
        scalars["relative_pose"] = 0.5 * float(
            losses["quaternion"].detach() / baseline_q + losses["translation"].detach() / baseline_t
        )
    return total, scalars


def flow_loss(landing: Tensor, points: Tensor) -> Tensor:
    """Mean absolute error of where each point of frames 1.. lands in frame 0, relative to its own pixel.

    points (B, S, g, g, 3) in camera 0; focal length 1 image width; points behind camera 0 do not count.
    """
    g = points.shape[2]
    u = (torch.arange(g, device=points.device) + 0.5) / g - 0.5
    own = torch.stack(torch.meshgrid(u, u, indexing="xy"), dim=-1)
    target = (points[..., :2] / points[..., 2:].clamp_min(0.1)).clamp(-1, 1) - own
    valid = (points[..., 2] > 0.1)[:, 1:]
    error = (landing - target)[:, 1:].abs().sum(-1)
    return (error * valid).sum() / valid.sum().clamp_min(1)


def matching_loss(features: Tensor, points: Tensor, radius: float = 0.04, temperature: float = 0.07) -> Tensor:
    """InfoNCE between patches of different frames: patches whose centre points are within `radius` should match.

    features (B, S, h, w, F), points (B, S, g, g, 3); a patch without a point nearer than 2 radius in another frame
    does not count.
    """
    B, S, h, w, _ = features.shape
    cell = points.shape[2] // h
    centres = points[:, :, cell // 2 :: cell, cell // 2 :: cell].reshape(B, S * h * w, 3)
    frame = torch.arange(S, device=points.device).repeat_interleave(h * w)
    same = frame[:, None] == frame[None]
    f = F.normalize(features.reshape(B, S * h * w, -1), dim=-1)
    logits = (f @ f.transpose(1, 2) / temperature).masked_fill(same, -1e4)
    distance = torch.cdist(centres, centres).masked_fill(same, 1e4)
    target = torch.softmax(-((distance / radius) ** 2), dim=-1)
    matched = distance.amin(-1) < 2 * radius
    cross_entropy = -(target * torch.log_softmax(logits, dim=-1)).sum(-1)
    return (cross_entropy * matched).sum() / matched.sum().clamp_min(1)
