"""The testbed with its frames shared out over 2 and 4 ranks, beside the same model in one process."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from accel.distributed import Ranks, ShardedModel
from accel.errors import AccelError
from accel.models import load_model
from accel.patch import patch
from accel.policies import Exact, Frame, Subsample, TemporalStride
from accel.schedule import exact_schedule
from tests import tolerances
from tests.accel.distributed.processes import run

FRAMES, SIDE, DEPTH = 7, 64, 6
SCHEDULES = {
    "exact": (Exact(),) * DEPTH,
    "frame": (Frame(),) * DEPTH,
    "mixed": (Exact(), Frame(), Subsample.avggt(4), TemporalStride(2), Subsample(fill="shrink"), Exact()),
}


def images():
    return torch.rand(1, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def schedule_for(model, name):
    return replace(exact_schedule(model.layout(images()), DEPTH), policies=SCHEDULES[name])


def forward_on_a_rank(name, dtype, autocast=False):
    ranks = Ranks()
    model = load_model("testbed", dtype=dtype)
    sharded = ShardedModel(model, schedule_for(model, name), ranks)
    first, count = sharded.shard.first, sharded.shard.local.frames
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = sharded(images()[:, first : first + count])
    assert not any("forward" in vars(block.attn) for block in model.aggregator.global_blocks)
    return out, sharded.sent, ranks.sent


def joined(found):
    """The predictions of the ranks, joined along the frames; the cameras, which every rank has, once."""
    outs = [out for out, _, _ in found]
    for out in outs[1:]:
        torch.testing.assert_close(out["pose_enc"], outs[0]["pose_enc"], **tolerances.SAME_ARITHMETIC)
    return {
        name: torch.cat([out[name] for out in outs], 1) if name != "pose_enc" else outs[0][name] for name in outs[0]
    }


@cache
def in_one_process(name, dtype, autocast=False):
    model = load_model("testbed", dtype=dtype)
    with torch.no_grad(), patch(model, schedule_for(model, name)), torch.autocast("cpu", torch.bfloat16, autocast):
        return model(images())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_one_process(name, size):
    got, want = joined(run(size, forward_on_a_rank, name, torch.float32)), in_one_process(name, torch.float32)
    assert list(got) == list(want)
    for key in want:
        torch.testing.assert_close(got[key], want[key], **tolerances.SAME_ARITHMETIC)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_rounds_as_much_as_in_one_process(autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    got, plain = joined(run(2, forward_on_a_rank, "mixed", dtype, autocast)), in_one_process("mixed", dtype, autocast)
    exact = in_one_process("mixed", torch.float32)
    for key in exact:
        errors = [(x[key].double() - exact[key].double()).norm().item() for x in (got, plain)]
        assert 0 < errors[0] <= tolerances.KERNEL_RATIO * errors[1]


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_sent_in_each_layer(size):
    """Exact attention passes on the keys and values of all ranks but the next one, frame attention nothing."""
    config = load_model("testbed").config
    frames = [FRAMES // size + (rank < FRAMES % size) for rank in range(size)]
    P = schedule_for(load_model("testbed"), "mixed").layout.tokens_per_frame
    for rank, (_, sent, total) in enumerate(run(size, forward_on_a_rank, "mixed", torch.float32)):
        assert list(sent) == [*range(DEPTH), "camera"] and total == sum(sent.values())
        passed_on = FRAMES - frames[(rank + 1) % size]
        assert sent[0] == sent[5] == 2 * passed_on * P * config.embed_dim * 4
        assert sent[1] == 0 and min(sent[2], sent[3], sent[4]) > 0  # of these: test_key_subset
        assert sent["camera"] == (size - 1) * frames[rank] * 2 * config.embed_dim * 4


def wrong_frames_on_a_rank():
    ranks, model = Ranks(), load_model("testbed")
    sharded = ShardedModel(model, schedule_for(model, "frame"), ranks)
    with pytest.raises(AccelError, match="give it frames 0 to 3" if ranks.rank == 0 else "give it frames 4 to 6"):
        sharded(images())
    with pytest.raises(AccelError, match="Linear cannot be shared out over ranks"):
        ShardedModel(torch.nn.Linear(1, 1), schedule_for(model, "frame"), ranks)


def test_wrong_frames_and_models_are_refused():
    run(2, wrong_frames_on_a_rank)


def two_scenes_on_a_rank():
    ranks = Ranks()
    model = load_model("testbed")
    model.frames_per_chunk = 2
    scenes = torch.rand(2, 3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    sharded = ShardedModel(model, exact_schedule(model.layout(scenes), DEPTH), ranks)
    first, count = sharded.shard.first, sharded.shard.local.frames
    out = sharded(scenes[:, first : first + count])
    with torch.no_grad():
        whole = model(scenes)
    return {name: (out[name], x if name == "pose_enc" else x[:, first : first + count]) for name, x in whole.items()}, (
        sum(sharded.sent.values()),
        ranks.sent,
    )


def test_several_scenes_of_uneven_shares_in_chunks():
    for pairs, (by_layer, total) in run(2, two_scenes_on_a_rank):
        assert by_layer == total > 0
        for got, want in pairs.values():
            torch.testing.assert_close(got, want, **tolerances.SAME_ARITHMETIC)
