"""A forward of VGGT with the frames shared out over ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.attend import without_autocast
from accel.distributed.attention import sharded_attend
from accel.distributed.ranks import Ranks
from accel.distributed.shard import Shard
from accel.errors import AccelError
from accel.models.vggt import VGGT
from accel.patch import ScheduleLike, patch
from accel.policies import Context, Policy


class ShardedModel:
    """`model` on this rank's frames of a scene: the same predictions, to rounding, as the whole model's on all of them.

    Frame attention, MLPs and dense heads stay on the rank; global layers exchange what their policy needs, and the
    camera head gets everybody's camera tokens. `sent[layer]` is the bytes this rank sent in each global layer of the
    last forward, `sent["camera"]` those of the camera tokens.
    """

    def __init__(self, model: VGGT, schedule: ScheduleLike, ranks: Ranks):
        if not isinstance(model, VGGT):
            raise AccelError(f"{type(model).__qualname__} cannot be shared out over ranks; give accel's VGGT")
        self.model, self.schedule, self.ranks = model, schedule, ranks
        self.shard = Shard(schedule.layout, ranks.rank, ranks.size)
        self.sent: dict[int | str, float] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, own frames, 3, H, W) -> this rank's predictions, and under "pose_enc" those of all frames."""
        self.model.check_images(images)
        layout = self.model.layout(images)
        if layout != self.shard.local:
            last = self.shard.first + self.shard.local.frames - 1
            raise AccelError(
                f"rank {self.ranks.rank} was given {layout} where its share of {self.shard.layout} is "
                f"{self.shard.local}; give it frames {self.shard.first} to {last}"
            )
        self.sent = {}
        with patch(self.model, self.schedule, attend=self._attend):
            kept = self.model.aggregator(images, frames_per_chunk=self.model.chunk(layout), first=self.shard.first)
        last = self.model.config.depth - 1
        before, self.ranks.doing = self.ranks.sent, "the camera tokens"
        camera = self.ranks.gather(kept[last][:, :, :1], self.shard.frames, dim=1)
        self.sent["camera"], self.ranks.doing = self.ranks.sent - before, ""
        return self.model.camera({last: camera}) | self.model.dense(kept, *images.shape[-2:])

    def _attend(
        self, policy: Policy, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, context: Context
    ) -> Tensor:
        before, self.ranks.doing = self.ranks.sent, f"global layer {context.layer}"
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
        with without_autocast(q):
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            out = sharded_attend(policy, q, k, v, self.shard, self.ranks, scale=scale, context=context)
        self.sent[context.layer] = self.sent.get(context.layer, 0.0) + self.ranks.sent - before
        return out
