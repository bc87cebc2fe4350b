"""Which frames and tokens belong to which rank."""

import pytest

from accel.distributed import Shard
from accel.errors import AccelError
from accel.layout import TokenLayout


@pytest.mark.parametrize("frames", [4, 5, 6, 7, 24])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_token_belongs_to_one_rank(frames, size):
    layout = TokenLayout(frames, 2, 4, 5)
    shards = [Shard(layout, rank, size) for rank in range(size)]
    tokens = [token for shard in shards for token in range(layout.tokens)[shard.own]]
    assert tokens == list(range(layout.tokens))
    for shard in shards:
        assert shard.local.tokens == shard.tokens[shard.rank] == shard.own.stop - shard.own.start
        assert shard.own.start == shard.first * layout.tokens_per_frame
        assert shard.starts == tuple(sum(shard.tokens[:rank]) for rank in range(size + 1))
        assert max(shard.frames) - min(shard.frames) <= 1 and list(shard.frames) == sorted(shard.frames, reverse=True)


def test_more_ranks_than_frames_and_wrong_ranks_are_refused():
    layout = TokenLayout(3, 2, 4, 5)
    with pytest.raises(AccelError, match="3 frames cannot be shared out over 4 ranks; start at most 3 ranks"):
        Shard(layout, 0, 4)
    with pytest.raises(AccelError, match="rank 2 is not one of 2 ranks"):
        Shard(layout, 2, 2)
