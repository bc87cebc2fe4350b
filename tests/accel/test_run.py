"""The main job end to end on a small random model: its files, its resumption, its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from accel import run as run_module
from accel.errors import AccelError
from accel.images import load_images, load_truth
from accel.models import VGGT_1B, random_model, save_model
from accel.models.config import VGGTConfig
from accel.profile import Profile
from accel.run import Settings, check_memory, peak_bytes, run
from accel.schedule import Schedule

SMALL = VGGTConfig(
    image_size=32,
    patch_size=8,
    embed_dim=32,
    depth=4,
    num_heads=2,
    num_register_tokens=1,
    layer_scale=0.5,
    vit_stem="conv",
    vit_depth=1,
    vit_heads=2,
    vit_registers=0,
    camera_depth=0,
    camera_heads=2,
    camera_iterations=1,
    dpt_layers=(0, 1, 2, 3),
    dpt_features=8,
    dpt_channels=(8, 8, 8, 8),
    dpt_scales=(2, 1, 1, 0.5),
    dpt_hidden=8,
)
FILES = {
    "predictions.npz",
    "schedule.json",
    "profile.nc",
    "ranks.nc",
    "spectra_predicted.nc",
    "spectra_measured.nc",
    "validation.nc",
    "results.json",
    "report.html",
}


def write_weights(folder):
    path = folder / "small.safetensors"
    save_model(random_model(SMALL, torch.Generator().manual_seed(1)), path)
    return path


def write_scene(folder):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    poses = np.tile(np.eye(3, 4), (4, 1, 1))
    poses[:, 0, 3] = -np.arange(4)
    depth = rng.uniform(1, 2, (4, 24, 32)).astype(np.float32)
    np.savez(folder / "truth.npz", extrinsics=poses, depth=depth, intrinsics=np.eye(3))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def done(weights, scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "made" / "here"
    return run([scene], out, weights=str(weights), tolerance=0.2, probe_frames=3)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_every_file_is_there_and_nothing_else(done):
    assert names(done.out) == FILES | {".cache"}


def test_predictions_hold_both_results(done):
    with np.load(done.out / "predictions.npz") as file:
        shapes = {name: file[name].shape for name in file}
    expected = {
        "pose_enc": (4, 9),
        "extrinsics": (4, 3, 4),
        "intrinsics": (4, 3, 3),
        "depth": (4, 24, 32),
        "depth_conf": (4, 24, 32),
        "world_points": (4, 24, 32, 3),
        "world_points_conf": (4, 24, 32),
    }
    assert shapes == expected | {f"dense_{name}": shape for name, shape in expected.items()} | {"names": (4,)}


def test_the_files_read_back(done):
    assert Schedule.load(done.out / "schedule.json") == done.schedule
    assert Profile.load(done.out / "profile.nc").layout.frames == 3
    with xr.open_dataset(done.out / "spectra_measured.nc", engine="h5netcdf") as measured:
        with xr.open_dataset(done.out / "spectra_predicted.nc", engine="h5netcdf") as predicted:
            assert measured.sizes == predicted.sizes
    assert json.loads((done.out / "results.json").read_text()) == done.results


def test_results_agree_with_their_sources(done):
    r = done.results
    assert r["input"]["tokens"] == done.layout.tokens == 4 * (2 + 12)
    assert [row["policy"]["policy"] for row in r["layers"]] == [p.name for p in done.schedule.policies]
    assert r["time"]["ratio"] == pytest.approx(r["time"]["dense_s"] / r["time"]["accelerated_s"])
    assert r["predicted_difference"] <= 0.2
    assert set(r["truth"]) == {"dense", "accelerated"}


def test_a_second_run_reuses_the_expensive_stages(done, weights, scene, monkeypatch):
    for name in ("probe", "measure_spectra", "validate"):
        monkeypatch.setattr(run_module, name, None)  # a call would fail
    again = run([scene], done.out, weights=str(weights), tolerance=0.2, probe_frames=3)
    assert again.reused == ("probe", "speeds", "validate", "spectra")
    assert again.results["layers"] == done.results["layers"]


def test_an_interrupted_run_keeps_the_old_results_and_resumes(done, weights, scene, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of an earlier run")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure_spectra", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run([scene], out, weights=str(weights), tolerance=0.2, probe_frames=3)
    assert names(out) == {"report.html", ".cache"} and (out / "report.html").read_text() == "of an earlier run"
    resumed = run([scene], out, weights=str(weights), tolerance=0.2, probe_frames=3, dense=False, spectra=False)
    assert resumed.reused == ("probe", "speeds")
    r = resumed.results
    assert r["output_difference"] is r["time"]["dense_s"] is r["time"]["ratio"] is None
    assert names(out) == FILES - {"spectra_measured.nc", "validation.nc"} | {".cache"}
    page = (out / "report.html").read_text()
    assert "not compared with dense" in page and "--no-spectra" in page


def test_a_failure_while_writing_replaces_nothing(done, weights, scene, monkeypatch):
    before = {name: (done.out / name).read_bytes() for name in FILES}

    def fail(result):
        raise OSError("disk full")

    monkeypatch.setattr(run_module.report, "render", fail)
    with pytest.raises(OSError, match="disk full"):
        run([scene], done.out, weights=str(weights), tolerance=0.2, probe_frames=3)
    assert names(done.out) == FILES | {".cache"}
    assert {name: (done.out / name).read_bytes() for name in FILES} == before


def test_other_weights_or_images_are_probed_anew(weights, scene, tmp_path):
    model = random_model(SMALL, torch.Generator().manual_seed(1))
    images = load_images([scene], SMALL)
    first = run_module._fingerprint(model, images.tensor)
    assert first == run_module._fingerprint(random_model(SMALL, torch.Generator().manual_seed(1)), images.tensor)
    assert first != run_module._fingerprint(random_model(SMALL, torch.Generator().manual_seed(2)), images.tensor)
    assert first != run_module._fingerprint(model, images.tensor + 1e-3)


def test_two_photographs_are_enough(weights, scene, tmp_path):
    done = run([scene / "0.png", scene / "1.png"], tmp_path / "out", weights=str(weights), spectra=False)
    assert done.layout.frames == done.profile.layout.frames == 2
    assert (done.out / "report.html").is_file() and np.isfinite(done.accelerated["depth"]).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget": 0.5}, "budget=0.5"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"tolerance": -1.0}, "tolerance=-1"),
        ({"budget": 2.0, "tolerance": 0.1}, "give one"),
        ({"probe_frames": 2}, "probe_frames=2"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_name_the_wrong_value(wrong, words):
    with pytest.raises(AccelError, match=words):
        Settings(**wrong)


def test_too_little_memory_names_the_frames_that_fit(monkeypatch):
    shape = (1, 60, 3, 392, 518)
    fitting = peak_bytes(VGGT_1B, (1, 20, *shape[2:]), 0)
    monkeypatch.setattr(run_module, "available_bytes", lambda device: 1.0001 * fitting / run_module.MEMORY_MARGIN)
    with pytest.raises(AccelError, match=r"60 frames need about .* GiB .* give --frames 20,"):
        check_memory(VGGT_1B, shape, torch.device("cpu"))
    check_memory(VGGT_1B, (1, 20, *shape[2:]), torch.device("cpu"))


def test_truth_follows_the_chosen_frames(scene):
    truth = load_truth(load_images([scene], SMALL, frames=2))
    np.testing.assert_array_equal(truth["extrinsics"][:, 0, 3], [0, -3])
    assert truth["intrinsics"].shape == (2, 3, 3)


def test_the_estimated_peak_is_near_the_measured_one():
    path = Path(__file__).parents[2] / "experiments" / "results" / "peak_memory.json"
    measured = json.loads(path.read_text())
    estimate = peak_bytes(VGGT_1B, tuple(measured["images"]), 1_190_595_096) / 1e9
    assert 1 / 1.5 < estimate / measured["peak_gb"] < 1.5


@pytest.mark.parametrize("name", ["meta", "cpu:7", "mps", "cuda:x", ""])
def test_other_devices_are_refused(name):
    with pytest.raises(AccelError, match=f'device "{name}".*give cpu'):
        run_module.choose_device(name)


def test_a_folder_in_the_place_of_an_output_is_refused_before_any_work(scene, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(AccelError, match=r"report.html is a folder"):
        run([scene], tmp_path, weights="not read")
    store = run_module._Store(tmp_path, "")
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(AccelError, match=r"report.html is a folder"):
        store.publish({"results.json": lambda path: path.write_text("new")})
    assert (tmp_path / "results.json").read_text() == "old" and names(tmp_path) == {"results.json", "report.html"}


def test_outputs_of_an_earlier_run_do_not_stay(tmp_path):
    for name in ("validation.nc", "spectra_measured.nc", "mine.txt"):
        (tmp_path / name).write_text("old")
    run_module._Store(tmp_path, "").publish({"results.json": lambda path: path.write_text("new")})
    assert names(tmp_path) == {"results.json", "mine.txt"} and set(run_module.OUTPUTS) == FILES


def test_another_machine_measures_its_own_times(done, weights, scene, monkeypatch):
    monkeypatch.setattr(run_module.platform, "node", lambda: "elsewhere")
    again = run([scene], done.out, weights=str(weights), tolerance=0.2, probe_frames=3)
    assert again.reused[0] == "probe" and not {"speeds", "validate"} & set(again.reused)


def test_the_code_of_both_packages_is_in_the_hash(scene, monkeypatch):
    read, seen = Path.read_bytes, set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.add(path.parent.name) or read(path))
    run_module._fingerprint(random_model(SMALL, torch.Generator().manual_seed(1)), load_images([scene], SMALL).tensor)
    assert {"accel", "policies", "meanfield"} <= seen
