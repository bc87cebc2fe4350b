"""What the other ranks say and leave behind when one dies, fails, is out of memory or hangs."""

import os
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from accel.cli import demo_folder
from accel.distributed import command, forward
from accel.models import VGGT
from tests.accel.distributed.processes import launch

FRAMES = 5


def die(*args, **kwargs):
    os._exit(7)


def run_out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def hang(*args, **kwargs):
    time.sleep(7)


def command_with_a_fault(arguments, rank, fault, place):
    """The command, in which `fault` is called by one rank in the global layer of number `place`, or in the heads."""
    sys.argv = ["accel.distributed", *arguments]
    if int(os.environ["RANK"]) == rank and place == "heads":
        VGGT.dense = fault
    elif int(os.environ["RANK"]) == rank:
        own = forward.sharded_attend
        forward.sharded_attend = partial(_at, place, fault, own)
    command.main()


def _at(layer, fault, own, *args, context, **kwargs):
    if context.layer == layer:
        fault()
    return own(*args, context=context, **kwargs)


def started(size, out, rank, fault, place, *more):
    arguments = [str(demo_folder()), "--out", str(out), "--frames", str(FRAMES), *more]
    return launch(size, command_with_a_fault, arguments, rank, fault, place)


def one_line(ended, *words):
    """The process ended with exit code 2 and one line on its streams, which has all the words."""
    code, printed = ended
    assert code == 2 and printed.startswith("error: ") and printed.count("\n") == 1, printed
    for word in words:
        assert word in printed
    return printed


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_dies_in_a_layer_ends_the_others(size, tmp_path):
    ended = started(size, tmp_path, 1, die, 2)
    assert ended[1] == (7, "")
    for rank in set(range(size)) - {1}:
        one_line(
            ended[rank], f"rank {rank} of {size} lost another rank in global layer", "start the same command again"
        )
    assert "layer 2" in ended[2 % size][1]
    assert not list(tmp_path.glob("*.npz*"))


def test_the_others_name_the_rank_that_is_out_of_memory(tmp_path):
    ended = started(2, tmp_path, 1, run_out_of_memory, 3)
    one_line(ended[1], "rank 1 of 2 is out of memory in global layer 3", "start more ranks", "--frames-per-chunk")
    one_line(ended[0], "rank 0 of 2 lost another rank in global layer 3", "rank 1 stopped", "is out of memory")


def test_parts_that_are_complete_can_be_read(tmp_path):
    ended = started(2, tmp_path, 1, die, "heads")
    one_line(ended[0], "the writing of the parts", f"part-00000.npz in {tmp_path} can be read")
    with np.load(tmp_path / "part-00000.npz") as part:
        assert len(part["depth"]) == len(part["names"]) == 3 and np.isfinite(part["world_points"]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.npz"]


def test_a_rank_that_hangs_is_given_up_after_the_timeout(tmp_path):
    ended = started(2, tmp_path, 1, hang, 1, "--timeout", "4")
    one_line(ended[0], "rank 0 of 2 lost another rank in global layer 1")
    one_line(ended[1], "rank 1 of 2 lost another rank in global layer 1", "rank 0 stopped")


def test_a_bad_photograph_of_one_rank_is_named_by_all(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(demo_folder().glob("*.png"))[:4]:
        (photos / path.name).write_bytes(path.read_bytes())
    last = max(photos.iterdir())
    last.write_bytes(b"not an image")
    ended = launch(2, command_with_a_fault, [str(photos), "--out", str(tmp_path / "out")], 0, None, -1)
    one_line(ended[1], str(last), "cannot be read as an image")
    one_line(ended[0], "rank 1 stopped", str(last), "cannot be read as an image")


def test_more_ranks_than_photographs(tmp_path):
    for ended in launch(
        4, command_with_a_fault, [str(demo_folder()), "--out", str(tmp_path), "--frames", "3"], 0, None, -1
    ):
        one_line(ended, "3 frames cannot be shared out over 4 ranks; start at most 3 ranks")
