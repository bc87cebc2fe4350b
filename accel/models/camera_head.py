"""Camera head: iterative refinement of a 9-dimensional pose encoding from the camera tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.models.config import VGGTConfig
from accel.models.layers import Block, Mlp

POSE_DIM = 9


class CameraHead(nn.Module):
    """Camera tokens (B, S, 2C) -> pose encoding (B, S, 9): translation, XYZW quaternion, fields of view.

    Each iteration modulates the tokens by the previous estimate (adaptive LayerNorm, DiT 2212.09748) and adds a
    correction; the fields of view are kept positive by a ReLU. Source: VGGT, section 3.3.
    """

    def __init__(self, config: VGGTConfig):
        super().__init__()
        dim = 2 * config.embed_dim
        self.iterations = config.camera_iterations
        self.trunk = nn.ModuleList(
            Block(dim, config.camera_heads, config.mlp_ratio, config.camera_layer_scale)
            for _ in range(config.camera_depth)
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_DIM))
        self.embed_pose = nn.Linear(POSE_DIM, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, POSE_DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.token_norm(tokens)
        pose = None
        for _ in range(self.iterations):
            previous = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if pose is None else pose.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(previous)).chunk(3, dim=-1)
            x = tokens + gate * (self.adaln_norm(tokens) * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x)
            delta = self.pose_branch(self.trunk_norm(x))
            pose = delta if pose is None else previous + delta
        return torch.cat([pose[..., :7], F.relu(pose[..., 7:])], dim=-1)
