"""Seconds and memory before anything runs."""

import json

import pytest
from typer.testing import CliRunner

from accel.backbones import backbone
from accel.cli import app
from accel.cost import predict_seconds
from accel.devices import device_named
from accel.errors import AccelError
from accel.estimate import estimate, parse_size
from accel.memory import default_chunk, peak_memory
from accel.models import VGGT_1B
from accel.policies import Frame, Merge

DEVICE = device_named("H100")


def test_rows_are_those_of_the_cost_and_the_memory_model():
    rows = estimate("vggt", [100, 300], (392, 518), DEVICE)
    assert [(row["frames"], row["setting"]) for row in rows] == [
        (100, "dense"),
        (100, "floor"),
        (300, "dense"),
        (300, "floor"),
    ]
    layout = backbone("vggt").layout(300, 392, 518)
    assert rows[2]["tokens"] == layout.tokens == 300 * 1041
    assert rows[3]["seconds"] == predict_seconds(
        "vggt", layout, DEVICE, (Frame(),) * 24, frames_per_chunk=default_chunk(layout)
    )
    assert rows[2]["memory"] == peak_memory(VGGT_1B, layout, itemsize=DEVICE.itemsize).peak
    assert rows[2]["seconds"]["total"] > rows[3]["seconds"]["total"] > rows[1]["seconds"]["total"]


def test_memory_is_that_of_the_setting():
    dense, merged = estimate("vggt", [1000], (392, 518), DEVICE, ["dense", "fastvggt"])
    layout = backbone("vggt").layout(1000, 392, 518)
    assert merged["memory"] == peak_memory(VGGT_1B, layout, (Merge.fastvggt(),) * 24, itemsize=2).peak
    assert merged["memory"] > dense["memory"]


def test_few_frames_launch_what_one_chunk_does():
    layout = backbone("vggt").layout(2, 392, 518)
    (row,) = estimate("vggt", [2], (392, 518), DEVICE, ["dense"])
    assert row["seconds"] == predict_seconds("vggt", layout, DEVICE)


def test_settings_that_leave_nothing_out_say_so():
    rows = estimate("vggt", [100, 101], (392, 518), DEVICE, ["dense", "spark3r", "avggt"])
    assert [row["exact"] for row in rows] == [True, True, False, True, False, False]
    command = ["estimate", "--frames", "100,101", "--gpu", "H100", "--settings", "dense,spark3r"]
    lines = CliRunner().invoke(app, command, env={"COLUMNS": "160"}).output.splitlines()
    assert ["exact here" in line for line in lines if "dense" in line or "spark3r" in line][-4:] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("model", ["pi3", "vggt-omega"])
def test_other_backbones_have_times_and_no_memory(model):
    size = (384, 512) if model == "vggt-omega" else (392, 518)
    dense, published = estimate(model, [300], size, DEVICE, ["dense", "avggt"])
    assert dense["memory"] is None and dense["seconds"]["total"] > published["seconds"]["total"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"settings": ["fast"]}, "'fast' is no setting; use one of .*dense.*floor.*fastvggt.*spark3r"),
        ({"size": (390, 518)}, "390x518"),
        ({"model": "dust3r"}, "dust3r"),
    ],
)
def test_what_an_estimate_refuses(given, message):
    asked = {"model": "vggt", "frames": [100], "size": (392, 518), "device": DEVICE} | given
    with pytest.raises(AccelError, match=message):
        estimate(**asked)


def test_size():
    assert parse_size(" 392x518 ") == (392, 518)
    for text in ("392", "392x", "axb", "-1x5", "0x14x2"):
        with pytest.raises(AccelError, match="is not a height and a width"):
            parse_size(text)


def test_command(tmp_path):
    command = ["estimate", "--frames", "100,1000", "--gpu", "h100"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert "dense" in found.output and "nothing was run" in found.output and "1041000" in found.output
    data = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert data["memory"] == 80e9 and len(data["rows"]) == 8
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"device": DEVICE.to_dict(), "sizes": "vggt-1b"}))
    command[-1] = str(file)
    same = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert same["rows"] == data["rows"] and same["memory"] is None
    testbed, damaged = tmp_path / "testbed.json", tmp_path / "damaged.json"
    testbed.write_text(json.dumps({"device": DEVICE.to_dict(), "sizes": "testbed"}))
    damaged.write_text(json.dumps({"device": DEVICE.to_dict() | {"linear": "abc"}, "sizes": "vggt-1b"}))
    files = (["--gpu", str(path)] for path in (testbed, damaged, tmp_path / "none.json"))
    for bad in (["--gpu", "abacus"], ["--gpu", "H100", "--size", "big"], *files):
        refused = CliRunner().invoke(app, ["estimate", "--frames", "100", *bad])
        assert refused.exit_code == 2 and "error: " in refused.output and "Traceback" not in refused.output
