"""`accel calibrate`: the file it writes, the comparison it prints, what it does without bf16."""

import json

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from accel import calibrate as module
from accel.calibrate import calibrate, comparison
from accel.cost import Device
from accel.devices import device_named, load_device
from accel.errors import AccelError


@pytest.fixture
def app():
    found = typer.Typer()
    found.command()(calibrate)
    return found


def test_the_file_holds_a_device_that_can_be_read(app, tmp_path):
    path = tmp_path / "new" / "device.json"
    result = CliRunner().invoke(app, ["--device", "cpu", "--sizes", "testbed", "--out", str(path)])
    assert result.exit_code == 0, result.output
    device = load_device(path)
    assert device.name.startswith("cpu") and device.itemsize == 4 and not device.queued
    assert "linear" in result.output and "no entry for this device" in result.output
    record = json.loads(path.read_text())
    assert record["provenance"]["versions"] and record["sizes"] == "testbed"
    with pytest.raises(AccelError, match="'testbed', not of 'vggt-1b'"):
        load_device(path, sizes="vggt-1b")


def test_the_comparison_is_measured_over_table():
    entry = device_named("H100")
    found = entry.to_dict() | {"name": "NVIDIA H100", "linear": 2 * entry.linear}
    record = {"device": found, "entry": entry.to_dict() | {"source": "rows"}, "sizes": "vggt-1b", "notes": []}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(comparison(record))
    lines = console.export_text().splitlines()
    assert next(line for line in lines if "linear" in line).rstrip(" │").endswith("2.00")
    assert next(line for line in lines if "attention" in line).rstrip(" │").endswith("1.00")


def test_a_gpu_without_bfloat16_is_measured_in_float16_with_a_note(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    dtype, notes = module._dtype(torch.device("cuda"))
    assert dtype is torch.float16 and "no bfloat16" in notes[0]
    assert module._dtype(torch.device("cpu")) == (torch.float32, [])


def test_bad_input_is_refused():
    with pytest.raises(AccelError, match="huge"):
        calibrate(sizes="huge")
    with pytest.raises(AccelError, match="tpu"):
        calibrate(device="tpu")


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(module, "measure", lambda *args: measured.append(args))
    file = tmp_path / "file"
    file.write_text("kept")
    for out in (tmp_path, file / "below" / "device.json"):
        with pytest.raises(AccelError, match="cannot be written"):
            calibrate(device="cpu", sizes="testbed", out=out)
    assert not measured and file.read_text() == "kept"


def test_an_interrupted_measurement_leaves_no_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    def interrupted(device, sizes):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure", interrupted)
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("kept")
    for out in (old, new):
        with pytest.raises(KeyboardInterrupt):
            calibrate(device="cpu", sizes="testbed", out=out)
    assert old.read_text() == "kept" and not new.exists()


def test_json_on_stdout_is_the_file(app, monkeypatch):
    device = Device("mine", 1.0, 2.0, 3.0, 4.0).to_dict()
    record = {"device": device, "entry": None, "sizes": "testbed", "notes": [], "provenance": {}}
    monkeypatch.setattr(module, "measure", lambda device, sizes: record)
    result = CliRunner().invoke(app, ["--json"])
    assert json.loads(result.output) == record
