"""One scene on several GPUs: frames are shared out over ranks, and each policy exchanges its keys in reduced form."""

from accel.distributed import block_sparse, compose, key_subset, merge, query_merge  # noqa: F401  (sharded_attend)
from accel.distributed.attention import sharded_attend
from accel.distributed.forward import ShardedModel
from accel.distributed.ranks import Ranks
from accel.distributed.shard import Shard

__all__ = ["Ranks", "Shard", "ShardedModel", "sharded_attend"]
