"""The main job end to end on a small random model: its files, its resumption, its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from accel import run as run_module
from accel import store as store_module
from accel.errors import AccelError
from accel.images import load_images, load_truth
from accel.layout import TokenLayout
from accel.memory import peak_memory
from accel.models import VGGT, random_model, save_model
from accel.models.config import VGGTConfig
from accel.profile import Profile
from accel.run import Settings, choose_dtype, run
from accel.schedule import Schedule, exact_schedule
from tests.tolerances import SAME_ARITHMETIC, TRUNK_BFLOAT16

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
    first = store_module.fingerprint(model, images.tensor)
    assert first == store_module.fingerprint(random_model(SMALL, torch.Generator().manual_seed(1)), images.tensor)
    assert first != store_module.fingerprint(random_model(SMALL, torch.Generator().manual_seed(2)), images.tensor)
    assert first != store_module.fingerprint(model, images.tensor + 1e-3)


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
        ({"dtype": "float16"}, 'dtype "float16"'),
        ({"memory": 0.0}, "memory=0"),
    ],
)
def test_settings_name_the_wrong_value(wrong, words):
    with pytest.raises(AccelError, match=words):
        Settings(**wrong)


def test_truth_follows_the_chosen_frames(scene):
    truth = load_truth(load_images([scene], SMALL, frames=2))
    np.testing.assert_array_equal(truth["extrinsics"][:, 0, 3], [0, -3])
    assert truth["intrinsics"].shape == (2, 3, 3)


@pytest.mark.parametrize("name", ["meta", "cpu:7", "mps", "cuda:x", ""])
def test_other_devices_are_refused(name):
    with pytest.raises(AccelError, match=f'device "{name}".*give cpu'):
        run_module.choose_device(name)


def test_a_folder_in_the_place_of_an_output_is_refused_before_any_work(scene, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(AccelError, match=r"report.html is a folder"):
        run([scene], tmp_path, weights="not read")
    store = store_module.Store(tmp_path, "")
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(AccelError, match=r"report.html is a folder"):
        store.publish({"results.json": lambda path: path.write_text("new")})
    assert (tmp_path / "results.json").read_text() == "old" and names(tmp_path) == {"results.json", "report.html"}


def test_outputs_of_an_earlier_run_do_not_stay(tmp_path):
    for name in ("validation.nc", "spectra_measured.nc", "mine.txt"):
        (tmp_path / name).write_text("old")
    store_module.Store(tmp_path, "").publish({"results.json": lambda path: path.write_text("new")})
    assert names(tmp_path) == {"results.json", "mine.txt"} and set(store_module.OUTPUTS) == FILES


def test_another_machine_measures_its_own_times(done, weights, scene, monkeypatch):
    monkeypatch.setattr(run_module.platform, "node", lambda: "elsewhere")
    again = run([scene], done.out, weights=str(weights), tolerance=0.2, probe_frames=3)
    assert again.reused[0] == "probe" and not {"speeds", "validate"} & set(again.reused)


def test_the_code_of_both_packages_is_in_the_hash(scene, monkeypatch):
    read, seen = Path.read_bytes, set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.add(path.parent.name) or read(path))
    store_module.fingerprint(random_model(SMALL, torch.Generator().manual_seed(1)), load_images([scene], SMALL).tensor)
    assert {"accel", "policies", "meanfield"} <= seen


# --- memory ---


def starve(monkeypatch, most):
    """Forwards of more than `most` frames at once are out of memory; returns the chunks that were tried."""
    tried, plain = [], VGGT.forward

    def forward(self, images):
        chunk = min(self.chunk(self.layout(images)), images.shape[1])
        tried.append(chunk)
        if chunk > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, images)

    monkeypatch.setattr(VGGT, "forward", forward)
    return tried


def test_out_of_memory_takes_fewer_frames_at_once_and_says_so(done, weights, scene, tmp_path, monkeypatch):
    tried = starve(monkeypatch, 2)
    found = run([scene], tmp_path / "out", weights=str(weights), tolerance=0.2, probe_frames=3, spectra=False)
    assert tried[0] == 3 and set(tried[1:]) <= {1, 2}
    assert any("2 frames at once instead of 4" in note for note in found.notes)
    assert Schedule.load(tmp_path / "out" / "schedule.json").frames_per_chunk == tried[-1] <= 2
    assert found.results["notes"] == list(found.notes)
    assert "frames at once instead of" in (tmp_path / "out" / "report.html").read_text()
    np.testing.assert_allclose(found.dense["depth"], done.dense["depth"], **SAME_ARITHMETIC)


def test_the_last_word_names_frames_and_nothing_written_is_lost(done, weights, scene, monkeypatch):
    before = {name: (done.out / name).read_bytes() for name in FILES}
    cached = names(done.out / ".cache")
    starve(monkeypatch, 0)
    with pytest.raises(AccelError, match=r"out of memory with 4 frames, one at a time .*give --frames \d"):
        run([scene], done.out, weights=str(weights), tolerance=0.1, probe_frames=3)
    assert {name: (done.out / name).read_bytes() for name in FILES} == before
    assert names(done.out / ".cache") >= cached


def test_no_other_plan_is_made_for_the_dense_forward(weights, scene, tmp_path, monkeypatch):
    plain, made, plans = VGGT.forward, run_module.make_schedule, []

    def forward(self, images):
        if images.shape[1] == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, images)

    def counted(*args):
        plans.append(args)
        return made(*args)

    monkeypatch.setattr(VGGT, "forward", forward)
    monkeypatch.setattr(run_module, "make_schedule", counted)
    with pytest.raises(AccelError, match="out of memory with 4 frames, one at a time"):
        run([scene], tmp_path / "out", weights=str(weights), tolerance=0.2, probe_frames=3)
    assert len(plans) == 1


def test_another_amount_of_free_memory_measures_nothing_anew(done, weights, scene, monkeypatch):
    made = run_module.make_schedule
    monkeypatch.setattr(
        run_module, "make_schedule", lambda *args: replace(made(*args), memory_reason="other words for the same")
    )
    again = run([scene], done.out, weights=str(weights), tolerance=0.2, probe_frames=3)
    assert again.schedule.memory_reason == "other words for the same" and "validate" in again.reused
    keys = {run_module._key(s) for s in (done.schedule, again.schedule, replace(done.schedule, frames_per_chunk=1))}
    assert len(keys) == 2


def test_predictions_of_another_device_do_not_stay_there(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self.shape) or self)
    model, x = random_model(SMALL, torch.Generator().manual_seed(1)), torch.rand(1, 2, 3, 32, 32)
    found, _, _ = run_module.forward(model, x)
    assert set(moved) == {value.shape for value in found.values()} and len(moved) == len(found)
    moved.clear()
    run_module.validate(model, x, exact_schedule(model.layout(x), 4), repeats=1, progress=False)
    assert moved.count(found["depth"].shape) == 2 * sum(v.shape == found["depth"].shape for v in found.values())


def test_spectra_that_do_not_fit_are_left_out_with_a_note(done, weights, scene, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(run_module, "measure_spectra", fail)
    found = run([scene], tmp_path / "out", weights=str(weights), tolerance=0.2, probe_frames=3, dense=False)
    assert found.measured is None and any("Spectra were not measured: out of memory" in note for note in found.notes)


def test_too_little_memory_is_said_before_any_work(weights, scene, tmp_path):
    with pytest.raises(AccelError, match=r"on cpu 4 frames need about .* may be used"):
        run([scene], tmp_path / "out", weights=str(weights), memory=1e5)
    assert not (tmp_path / "out").exists()
    layout = TokenLayout(4, 2, 3, 4)
    needed = peak_memory(SMALL, layout, frames_per_chunk=1)
    for dense, held in ((True, 3), (False, 1)):
        memory, found = needed.peak + held * needed.outputs, Settings(memory=1, dense=dense)
        model = random_model(SMALL, torch.Generator().manual_seed(1))
        assert run_module._memory(model, layout, replace(found, memory=memory), torch.device("cpu")) == (
            memory,
            held * needed.outputs / 4,
        )
        with pytest.raises(AccelError, match=r"or --no-dense, with which" if dense else r"on cpu 4 frames need"):
            run_module._memory(model, layout, replace(found, memory=memory - 1), torch.device("cpu"))


def test_a_run_within_memory_chooses_its_chunk(weights, scene, tmp_path):
    config = {"frames_per_chunk": 1}
    layout = TokenLayout(4, 2, 3, 4)
    needed = peak_memory(SMALL, layout, **config)
    found = run(
        [scene],
        tmp_path / "out",
        weights=str(weights),
        tolerance=0.2,
        probe_frames=3,
        spectra=False,
        memory=1.02 * needed.peak + 3 * needed.outputs,
    )
    assert found.schedule.frames_per_chunk == 1 and "chunks of 1 frames: 2 would need" in found.schedule.memory_reason
    assert found.results["memory"]["frames_per_chunk"] == 1


def test_every_stage_runs_with_a_trunk_in_bfloat16(done, weights, scene, tmp_path):
    found = run([scene], tmp_path / "out", weights=str(weights), tolerance=0.2, probe_frames=3, dtype="bfloat16")
    assert names(found.out) == FILES | {".cache"} and found.schedule.device.itemsize == 2
    assert "bfloat16" in found.provenance["dtype"] and any("bfloat16" in note for note in found.notes)
    difference = np.abs(found.dense["depth"] - done.dense["depth"]).mean() / done.dense["depth"].mean()
    assert 0 < difference < TRUNK_BFLOAT16
    assert found.schedule.predicted_memory[0] < done.schedule.predicted_memory[0]


def test_auto_is_float32_on_a_cpu_and_an_able_gpu_takes_bfloat16(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == (torch.float32, ())
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, able=able: able)
        assert choose_dtype("auto", gpu)[0] == dtype and choose_dtype("float32", gpu)[0] == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(AccelError, match="Old GPU has no bfloat16; give --dtype float32"):
        choose_dtype("bfloat16", gpu)
