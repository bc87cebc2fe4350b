"""The command line: every bad input ends in one line, exit code 2 and untouched files; the commands work together."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from accel import cli
from accel import memory as memory_module
from accel import run as run_module
from accel.layout import TokenLayout
from accel.memory import peak_memory
from accel.models import VGGTConfig
from tests.accel.test_run import SMALL, write_scene, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def out(tmp_path):
    """A folder with the results of an earlier run."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "report.html").write_text("earlier")
    return folder


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(x) for x in arguments])


def refused(result, *words):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in errors[0], errors[0]
    return lines


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_image(folder, scene, weights):
    (folder / "empty").mkdir()
    return [folder / "empty"], {}, ("no images", "empty", "give at least 2")


def no_argument(folder, scene, weights):
    return [], {}, ("no images", "give at least 2")


def one_image(folder, scene, weights):
    return [scene / "0.png"], {}, ("only one image", "0.png", "at least 2")


def missing_path(folder, scene, weights):
    return [scene, folder / "gone.jpg"], {}, ("gone.jpg", "does not exist")


def not_an_image(folder, scene, weights):
    return [scene, scene / "truth.npz"], {}, ("truth.npz", "is not an image file")


def unreadable(folder, scene, weights):
    (folder / "broken.png").write_bytes((scene / "0.png").read_bytes()[:100])
    return [scene, folder / "broken.png"], {}, ("broken.png", "cannot be read", "replace")


def mixed_sizes(folder, scene, weights):
    Image.new("RGB", (32, 32)).save(folder / "square.png")
    return [scene, folder / "square.png"], {}, ("mixed sizes", "32x24", "square.png is 32x32", "one size")


def nan_weights(folder, scene, weights):
    state = load_file(weights)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, folder / "nan.safetensors", metadata={"config": SMALL.to_json()})
    return [scene], {"--weights": folder / "nan.safetensors"}, ("nan.safetensors", "non-finite")


def another_model(folder, scene, weights):
    save_file({"encoder.weight": torch.zeros(3)}, folder / "other.safetensors")
    return [scene], {"--weights": folder / "other.safetensors"}, ("other.safetensors", "not a checkpoint of this VGGT")


def other_sizes(folder, scene, weights):
    config = VGGTConfig.from_json(SMALL.to_json().replace('"embed_dim": 32', '"embed_dim": 64'))
    save_file(load_file(weights), folder / "sizes.safetensors", metadata={"config": config.to_json()})
    return [scene], {"--weights": folder / "sizes.safetensors"}, ("sizes.safetensors", "differently shaped")


def no_weights(folder, scene, weights):
    return [scene], {"--weights": folder / "gone.safetensors"}, ("gone.safetensors",)


def budget_below_one(folder, scene, weights):
    return [scene], {"--budget": "0.5x"}, ("budget=0.5", "at least 1")


def budget_in_words(folder, scene, weights):
    return [scene], {"--budget": "fast"}, ('"fast"', "such as 2x")


def tolerance_in_words(folder, scene, weights):
    return [scene], {"--tolerance": "abc"}, ('"abc"', "give a relative error such as 0.02")


def tolerance_not_a_number(folder, scene, weights):
    return [scene], {"--tolerance": "nan"}, ("tolerance=nan", "0 .. 1", "such as 0.02")


def budget_and_tolerance(folder, scene, weights):
    return [scene], {"--budget": "2x", "--tolerance": "0.1"}, ("budget=2", "tolerance=0.1", "give one")


def unknown_device(folder, scene, weights):
    return [scene], {"--device": "abacus"}, ('"abacus"', "cpu")


BEFORE_WORK = [
    no_argument,
    no_image,
    one_image,
    missing_path,
    not_an_image,
    unreadable,
    mixed_sizes,
    nan_weights,
    another_model,
    other_sizes,
    no_weights,
    budget_below_one,
    budget_in_words,
    tolerance_in_words,
    tolerance_not_a_number,
    budget_and_tolerance,
    unknown_device,
]


@pytest.mark.parametrize("case", BEFORE_WORK, ids=lambda case: case.__name__)
def test_bad_input_is_one_line_and_touches_nothing(case, tmp_path, scene, weights, out):
    images, options, words = case(tmp_path, scene, weights)
    given = {"--weights": weights, "--out": out} | options
    before = snapshot(tmp_path)
    lines = refused(call("run", *images, *(x for pair in given.items() for x in pair)), *words)
    assert len(lines) == 1
    assert snapshot(tmp_path) == before
    fresh = tmp_path / "fresh"
    refused(call("run", *images, *(x for pair in (given | {"--out": fresh}).items() for x in pair)), *words)
    assert not fresh.exists()


def test_an_output_folder_that_is_a_file(tmp_path, scene, weights):
    file = tmp_path / "file"
    file.write_text("mine")
    for target in (file, file / "below"):
        lines = refused(call("run", scene, "--weights", weights, "--out", target), "file is a file", "--out")
        assert len(lines) == 1
    assert snapshot(tmp_path) == {file: b"mine"}


def test_an_impossible_budget_keeps_earlier_results(scene, weights, out):
    result = call("run", scene, "--weights", weights, "--out", out, "--probe-frames", 3, "--budget", "1000x")
    refused(result, "budget=1000", "at best", "lower the budget")
    assert (out / "report.html").read_text() == "earlier"
    assert {path.name for path in out.iterdir()} == {"report.html", ".cache"}


def test_too_little_memory(scene, weights, out, monkeypatch):
    monkeypatch.setattr(memory_module, "available_bytes", lambda device: 1e3)
    refused(call("run", scene, "--weights", weights, "--out", out), "4 frames need", "would fit")
    assert {path.name for path in out.iterdir()} == {"report.html"}


def test_an_interrupt_says_that_it_can_be_resumed(scene, weights, out, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "probe", interrupt)
    result = call("run", scene, "--weights", weights, "--out", out)
    assert result.exit_code == 130 and "resumes" in result.stderr and "Traceback" not in result.output


def test_a_missing_option_is_a_usage_error(scene):
    assert call("run", scene).exit_code == 2
    assert call("no-such-command").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "photos"], 2, ("--out", "see accel run --help")),
        (["run", "photos", "--out", "x", "--tolerance", "abc"], 2, ('tolerance "abc"', "such as 0.02")),
        (["demo", "--out", "x", "--tolerance", "2 %"], 2, ('tolerance "2 %"', "such as 0.02")),
        (["plan", "x.nc", "--frames", "many"], 2, ("--frames", '"many" is not an integer', "see accel plan --help")),
        (["run", "photos", "--out", "x", "--seed", "1.5"], 2, ("--seed", '"1.5" is not an integer')),
        (["plan", "x.nc", "--frames", "8", "--tolerance", "low"], 2, ('tolerance "low"', "such as 0.02")),
        (["plan", "x.nc", "--frames", "8", "--memory", "12 gigs"], 2, ('memory "12 gigs"', "such as 12GB")),
        (["run", "photos", "--out", "x", "--dtype", "half"], 2, ('dtype "half"', "float32, bfloat16")),
        (["no-such-command"], 2, ("no-such-command", "see accel --help")),
        (["predict", "--frames", "0"], 2, ('"0"', "give for example")),
        (["run", "--help"], 0, ()),
        ([], 0, ()),
    ],
)
def test_the_console_script_answers_in_one_line(arguments, code, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accel", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    seen = capsys.readouterr()
    assert exit.value.code == code
    if code == 0:
        assert "Usage" in seen.out and not seen.err
    else:
        assert seen.err.startswith("error: ") and seen.err.count("\n") == 1 and not seen.out
    for word in words:
        assert word in seen.err


def test_python_m_accel_exits_with_2_for_bad_usage():
    result = subprocess.run([sys.executable, "-m", "accel", "run"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["meta", "", "mps", "cpu:7"])
def test_only_cpu_and_cuda_are_devices(name, scene, out):
    for command in (
        ("run", scene, "--out", out),
        ("plan", "x.nc", "--frames", 8),
        ("validate", scene, "--schedule", "s"),
    ):
        refused(call(*command, "--device", name), f'device "{name}" is unknown', "give cpu")


def test_run_plan_validate_predict(tmp_path, scene, weights):
    out = tmp_path / "out"
    common = ("--weights", weights, "--tolerance", 0.2)
    result = call("run", scene, "--out", out, "--probe-frames", 3, *common)
    assert result.exit_code == 0, result.output
    assert str(out / "report.html") in result.stdout and "effective rank" in result.stdout
    assert "AUC@30" in result.stdout and "probe" in result.stderr

    result = call("run", scene, "--out", out, "--probe-frames", 3, "--json", *common)
    assert json.loads(result.stdout) == json.loads((out / "results.json").read_text())
    assert "reused from an earlier run" in result.stderr

    result = call("validate", scene, "--schedule", out / "schedule.json", "--weights", weights, "--json")
    found = json.loads(result.stdout)["data_vars"]["measured_error"]["data"]
    expected = [row["measured_error"] for row in json.loads((out / "results.json").read_text())["layers"]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    validate = ("validate", scene, "--schedule", out / "schedule.json", "--weights", weights)
    result = call(*validate, "--dtype", "bfloat16", "--json")
    assert "bfloat16" in json.loads(result.stdout)["attrs"]["dtype"]
    refused(call(*validate, "--dtype", "half"), 'dtype "half"', "float32, bfloat16")

    planned = tmp_path / "planned.json"
    result = call("plan", out / "profile.nc", "--frames", 8, "--tolerance", 0.5, "--out", planned)
    assert result.exit_code == 0 and "schedule for 8 frames" in result.stdout
    assert json.loads(planned.read_text())["layout"]["frames"] == 8

    least = peak_memory(SMALL, TokenLayout(8, 2, 3, 4), frames_per_chunk=1)
    within = ("plan", out / "profile.nc", "--frames", 8, "--tolerance", 0.5, "--memory")
    refused(call(*within, f"{least.peak + 2.9 * least.outputs:.0f}B"), "8 frames need about", "of predictions beside")
    assert call(*within, f"{least.peak + 3.1 * least.outputs:.0f}B").exit_code == 0

    result = call("predict", "--profile", out / "profile.nc", "--frames", "4,8", "--json")
    found = json.loads(result.stdout)
    assert found["tokens"] == [56, 112] and np.shape(found["attention_effective_rank"]) == (2, 4)


def test_predict_from_a_preset():
    result = call("predict", "--frames", "2,4")
    assert result.exit_code == 0 and "vggt-init" in result.stdout
    refused(call("predict", "--params", "no-such", "--frames", "4"), "no-such")
    refused(call("predict", "--frames", "many"), '"many"', "8,16,32")
    refused(call("predict", "--frames", "1" + "0" * 400), "from 1 to 10000000")
    refused(call("predict", "--frames", "8", "--profile", "gone.nc"), "gone.nc")


@pytest.mark.parametrize("frames", ["0", "-3", "10000001", "1" + "0" * 400])
def test_plan_refuses_numbers_of_frames_without_a_meaning(frames, tmp_path):
    refused(call("plan", tmp_path / "gone.nc", "--frames", frames), f"frames={frames}", "from 1 to 10000000", "give")


def test_plan_refuses_what_is_no_profile(tmp_path):
    refused(call("plan", tmp_path / "gone.nc", "--frames", 8), "gone.nc")
    (tmp_path / "bad.nc").write_text("not netCDF")
    refused(call("plan", tmp_path / "bad.nc", "--frames", 8), "bad.nc")
