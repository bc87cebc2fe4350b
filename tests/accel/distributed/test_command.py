"""`python -m accel.distributed` as torchrun starts it: files, numbers, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from accel.cli import demo_folder
from accel.cost import Device
from accel.distributed import command
from accel.images import file_names, load_images
from accel.models import load_model
from accel.presets import published_schedule
from accel.profile import probe
from accel.run import forward, prediction_arrays
from accel.schedule import Schedule
from tests import tolerances
from tests.accel.distributed.processes import launch

FRAMES = 5
DEVICE = Device("unit", 1e9, 1e9, 1e9, 1e9)


def command_on_a_rank(*arguments):
    sys.argv = ["accel.distributed", *map(str, arguments)]
    Device.measure = classmethod(lambda *args, **kwargs: DEVICE)  # 3 s, and another plan at every call
    command.main()


def start(size, out, *more, photos=None):
    photos = demo_folder() if photos is None else photos
    return launch(size, command_on_a_rank, photos, "--out", out, "--frames", FRAMES, *more)


def refused(size, out, *more, photos=None):
    """What every rank says in one line, with exit code 2."""
    ended = start(size, out, *more, photos=photos)
    for code, printed in ended:
        assert code == 2 and printed.startswith("error: ") and printed.count("\n") == 1, printed
    return [printed for _, printed in ended]


def expected(schedule=None):
    """The arrays of `accel run` on the same photographs."""
    model = load_model("testbed")
    images = load_images([demo_folder()], model.config, frames=FRAMES)
    planned = None if schedule is None else schedule(model.layout(images.tensor), model.config.depth)
    return prediction_arrays(forward(model, images.tensor, planned)[0]) | {"names": np.array(images.names)}


def check_predictions(out, want):
    with np.load(out / "predictions.npz") as found:
        assert set(found) == set(want)
        for name, value in want.items():
            if name == "names":
                assert found[name].tolist() == value.tolist()
            else:
                np.testing.assert_allclose(found[name], value, **tolerances.SAME_ARITHMETIC)


@pytest.mark.parametrize("size", [1, 2])
def test_predictions_are_those_of_one_process(size, tmp_path):
    ended = start(size, tmp_path, "--published", "avggt")
    assert [code for code, _ in ended] == [0] * size
    assert f"{FRAMES} frames on {size} ranks" in ended[0][1] and "predictions.npz" in ended[0][1]
    assert all(printed == "" for _, printed in ended[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.npz", "results.json", "schedule.json"]
    check_predictions(tmp_path, expected(lambda layout, depth: published_schedule("avggt", layout, depth)))

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["frames"] == ([3, 2] if size == 2 else [5])
    for seconds, waited in zip(results["seconds"], results["seconds_waited"], strict=True):
        assert 0 <= waited < seconds
    schedule = Schedule.load(tmp_path / "schedule.json")
    assert [row["policy"] for row in results["layers"]] == [policy.to_dict() for policy in schedule.policies]
    for row in results["layers"]:
        assert len(row["sent_bytes"]) == size
        assert (sum(row["sent_bytes"]) > 0) == (size > 1 and row["policy"]["policy"] != "frame")
        assert row["sent_bytes_per_frame"] == sum(row["sent_bytes"]) / FRAMES
    assert sum(results["sent_bytes_per_frame"].values()) == pytest.approx(
        sum(row["sent_bytes_per_frame"] for row in results["layers"])
    )


def test_exact_without_a_schedule_and_parts_of_an_earlier_run(tmp_path):
    (tmp_path / "part-00003.npz").write_bytes(b"of an earlier run")
    assert [code for code, _ in start(4, tmp_path)] == [0] * 4
    check_predictions(tmp_path, expected())
    assert not list(tmp_path.glob("part-*"))
    layers = json.loads((tmp_path / "results.json").read_text())["layers"]
    assert {row["policy"]["policy"] for row in layers} == {"exact"}


def test_a_plan_from_a_profile_is_the_same_on_all_ranks(tmp_path):
    model = load_model("testbed")
    images = load_images([demo_folder()], model.config, frames=FRAMES).tensor
    profile = probe(model, images, frames=3, generator=torch.Generator().manual_seed(0), progress=False)
    profile.save(tmp_path / "profile.nc")
    out = tmp_path / "out"
    assert [code for code, _ in start(2, out, "--profile", tmp_path / "profile.nc", "--tolerance", "0.5")] == [0, 0]
    planned = Schedule.load(out / "schedule.json")
    assert planned.layout.frames == FRAMES and {policy.name for policy in planned.policies} != {"exact"}

    again = tmp_path / "again"
    more = ("--schedule", out / "schedule.json", "--frames-per-chunk", "1")
    assert [code for code, _ in start(2, again, *more)] == [0, 0]
    with np.load(out / "predictions.npz") as predictions:
        check_predictions(again, dict(predictions))
    for printed in refused(2, again, "--schedule", out / "schedule.json", "--frames", "4"):
        assert "is for TokenLayout(frames=5" in printed and "accel plan" in printed


def test_bfloat16(tmp_path):
    assert [code for code, _ in start(2, tmp_path, "--dtype", "bfloat16")] == [0, 0]
    assert json.loads((tmp_path / "results.json").read_text())["dtype"] == "bfloat16"
    with np.load(tmp_path / "predictions.npz") as found:
        assert all(np.isfinite(found[name]).all() for name in found if name != "names")


def test_mixed_sizes_on_different_ranks(tmp_path):
    for place, side in enumerate((60, 60, 80, 80)):
        Image.new("RGB", (60, side)).save(tmp_path / f"{place}.png")
    for printed in refused(2, tmp_path / "out", photos=tmp_path):
        assert f"mixed sizes: {tmp_path / '0.png'} is 60x60 and {tmp_path / '2.png'} is 60x80" in printed


def test_other_photographs_on_another_node(tmp_path):
    """Each rank is given its own list, as where nodes do not share a folder."""
    for printed in [text for _, text in launch(2, command_with_own_frames, tmp_path)]:
        assert "photographs and rank" in printed and "give all nodes the same" in printed


def command_with_own_frames(out):
    command_on_a_rank(demo_folder(), "--out", out, "--frames", 4 + int(os.environ["RANK"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: this command is started by torchrun"),
        (["--schedule", "s.json", "--published", "avggt"], "--schedule and --published were given; give at most one"),
        (["--budget", "2x"], "give its --profile"),
        (["--tolerance", "0.1", "--published", "avggt"], "give its --profile"),
        (["--dtype", "float8"], 'dtype "float8" is not one of float32, bfloat16'),
        (["--frames-per-chunk", "0"], "frames_per_chunk=0 must be at least 1"),
    ],
)
def test_what_is_refused_before_anything_starts(options, message, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(command.app, [str(demo_folder()), "--out", str(tmp_path), *options])
    assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_refused_by_the_ranks(tmp_path):
    for seconds in ("-1", "nan", "inf"):
        printed = refused(1, tmp_path, "--timeout", seconds)[0]
        assert f"timeout={seconds} is not a positive number of seconds" in printed
    assert all('device "tpu"' in printed for printed in refused(2, tmp_path, "--device", "tpu"))
    printed = refused(2, tmp_path, "--published", "nobody")
    assert "'nobody' is no published setting" in printed[0] and "rank 0 stopped: 'nobody'" in printed[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_rank_without_a_gpu_says_so(tmp_path):
    for rank, printed in enumerate(refused(2, tmp_path, "--device", "cuda")):
        assert f"rank {rank} is number {rank} on this machine, which has 0 CUDA devices" in printed


def test_names_tell_photographs_of_two_folders_apart():
    assert file_names([Path("a/1.png"), Path("a/2.png")]) == ("1.png", "2.png")
    assert file_names([Path("a/1.png"), Path("b/1.png")]) == ("a/1.png", "b/1.png")


def test_the_documented_line(tmp_path):
    """torchrun itself, once."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    line += ["-m", "accel.distributed", str(demo_folder()), "--out", str(tmp_path), "--frames", "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "2 frames on 1 ranks" in done.stdout, done.stderr
    assert (tmp_path / "predictions.npz").is_file()
