import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from accel.bench import runner, workspace
from accel.bench.cases import Case, profile_cases
from accel.bench.machine import Machine
from accel.bench.runner import bench
from accel.bench.settings import Setting
from accel.bench.store import FILE
from accel.bench.suites import Prepared, predicted_bytes
from accel.bench.timing import FAILED, NO_MEMORY, OK, SKIPPED
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.memory import peak_memory
from accel.models import TESTBED
from accel.policies import Exact
from tests.accel.bench.fakes import Clock, cpu

FIRST, SECOND, THIRD = (Case("spectra", "testbed", n, (4, 4), "float32", ("forward",), 1) for n in (2, 3, 4))


def row(seconds):
    """A row as `run_case` makes it."""
    return {"run": "forward", "status": OK, "reason": "", "basis": "", "predicted_seconds": 1.0} | {
        "seconds": seconds,
        "seconds_quartiles": None,
    }


@pytest.fixture
def scripted(monkeypatch):
    """A benchmark of three cases that take 10 s each where 10 s are expected; `does[case]` replaces what one does.

    Returns (clock, does, ran): the cases that were run, in order.
    """
    clock, does, ran = Clock(), {}, []

    def run(case, plan, space, deadline):
        ran.append(case)
        does.get(case, lambda: clock.advance(10.0))()
        return {"rows": [row(1.0) | {"speedup": 1.0, "speedup_quartiles": [1.0, 1.0]}]}

    monkeypatch.setattr(runner, "profile_cases", lambda *_: (FIRST, SECOND, THIRD))
    monkeypatch.setattr(runner, "prepare", lambda case, space: Prepared({"forward": Setting(())}, {}, {"forward": 5.0}))
    monkeypatch.setattr(runner, "run_case", run)
    monkeypatch.setattr("accel.bench.workspace.Workspace.setup_seconds", lambda self, case: 0.0)
    monkeypatch.setattr("accel.bench.results.figure", lambda results, path: path.write_text("a figure"))
    return clock, does, ran


def go(out, clock, **more):
    return bench(out, machine=cpu(clock), **more)


def statuses(results):
    return [record["status"] for record in results["cases"]]


def test_a_call_stops_before_its_limit_and_the_next_continues(scripted, tmp_path):
    clock, _, ran = scripted
    results = go(tmp_path, clock, limit=25.0)
    assert ran == [FIRST, SECOND] and results["left"] == [THIRD.name] and clock.now <= 25.0
    results = go(tmp_path, clock, limit=25.0)
    assert ran == [FIRST, SECOND, THIRD] and results["left"] == []
    go(tmp_path, clock, limit=25.0)
    assert len(ran) == 3
    assert len(results["cases"]) == 3 and len((tmp_path / FILE).read_text().splitlines()) == 3


def test_the_first_case_of_a_call_runs_however_long(scripted, tmp_path):
    clock, _, ran = scripted
    for done in range(1, 4):
        results = go(tmp_path, clock, limit=1.0)
        assert len(ran) == done and len(results["left"]) == 3 - done


def test_measured_cases_correct_the_estimates(scripted, tmp_path, monkeypatch):
    clock, _, ran = scripted
    monkeypatch.setattr(
        runner,
        "run_case",
        lambda case, *_: (
            ran.append(case),
            clock.advance(30.0),
            {"rows": [row(3.0) | {"speedup": None, "speedup_quartiles": None}]},
        )[2],
    )
    go(tmp_path, clock, limit=55.0)  # 25 s are left after the first, 10 s are predicted, 30 s by what was measured
    assert ran == [FIRST]


def test_a_torn_last_line_is_done_again(scripted, tmp_path):
    clock, _, ran = scripted
    go(tmp_path, clock)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    results = go(tmp_path, clock)
    assert ran == [FIRST, SECOND, THIRD, THIRD] and statuses(results) == [OK] * 3


def test_other_code_or_another_machine_measures_anew(scripted, tmp_path, monkeypatch):
    clock, _, ran = scripted
    go(tmp_path, clock)
    monkeypatch.setattr(Machine, "identity", lambda self: ("cpu", "another processor", "2", torch.__version__))
    results = go(tmp_path, clock)
    assert len(ran) == 6 and results["ignored"] == 3 and len(results["cases"]) == 3
    monkeypatch.setattr("accel.bench.workspace.code_version", lambda: "another")
    assert go(tmp_path, clock)["ignored"] == 6 and len(ran) == 9


def test_an_interrupt_keeps_what_is_finished(scripted, tmp_path):
    clock, does, ran = scripted

    def interrupt():
        raise KeyboardInterrupt

    does[SECOND] = interrupt
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, clock)
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["cases"]) == 1 and written["left"] == [SECOND.name, THIRD.name]
    assert (tmp_path / "bench.png").stat().st_size > 0
    del does[SECOND]
    assert statuses(go(tmp_path, clock)) == [OK] * 3 and ran == [FIRST, SECOND, SECOND, THIRD]


@pytest.mark.parametrize(
    "error, status",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), NO_MEMORY),
        (AccelError("this cannot be; do that"), FAILED),
        (KeyError("a mistake"), FAILED),
    ],
)
def test_a_case_that_fails_is_recorded_and_the_others_go_on(scripted, tmp_path, error, status):
    clock, does, ran = scripted

    def fail():
        raise error

    does[FIRST] = fail
    results = go(tmp_path, clock)
    assert statuses(results) == [status, OK, OK]
    assert results["cases"][0]["reason"] and results["rows"][0]["reason"]
    del does[FIRST]
    assert statuses(go(tmp_path, clock)) == [status, OK, OK]  # it counts as done
    assert statuses(go(tmp_path, clock, retry=True)) == [OK, OK, OK]  # unless asked for
    assert ran.count(FIRST) == 2


def test_a_device_without_bfloat16_skips_what_needs_it(scripted, tmp_path, monkeypatch):
    clock, _, ran = scripted
    half = replace(SECOND, dtype="bfloat16")
    monkeypatch.setattr(runner, "profile_cases", lambda *_: (FIRST, half))
    monkeypatch.setattr(Machine, "lacks", lambda self, dtype: "no bfloat16" if dtype == torch.bfloat16 else "")
    results = go(tmp_path, clock)
    assert ran == [FIRST] and statuses(results) == [OK, SKIPPED] and results["cases"][1]["reason"] == "no bfloat16"


def test_a_gpu_without_a_compiler_skips_block_sparse_attention(tmp_path, monkeypatch, no_setup):
    monkeypatch.setattr(Machine, "lacks_compiler", lambda self, *_: "no compiler")
    case = Case("kernels", "testbed", 8, (4, 4), "float32", ("dense", "faster-vggt", "block-sparse", "frame"), 1)
    monkeypatch.setattr(runner, "profile_cases", lambda *_: (case,))
    rows = {row["run"]: row for row in bench(tmp_path, machine=cpu())["rows"]}
    assert rows["faster-vggt"]["status"] == rows["block-sparse"]["status"] == SKIPPED
    assert rows["faster-vggt"]["reason"] == "no compiler"
    assert rows["dense"]["status"] == rows["frame"]["status"] == OK


def test_the_tiny_profile_measures_every_suite(tmp_path, no_setup):
    results = bench(tmp_path, profile="tiny", device="cpu")
    assert statuses(results) == [OK] * 4 and results["left"] == []
    rows = {(row["suite"], row["run"]): row for row in results["rows"]}
    for row_ in rows.values():
        if row_["status"] == OK:
            assert row_["seconds"] > 0 and row_["speedup"] > 0 and row_["tflops"] > 0
            low, high = row_["seconds_quartiles"]
            assert low <= row_["seconds"] <= high and len(row_["all_seconds"]) == row_["rounds"] == 2
    assert rows["model", "spark3r"]["status"] == SKIPPED
    dense, floor = rows["model", "dense"], rows["model", "floor"]
    assert dense["error"] == dense["output_difference"] == 0
    assert 0 < floor["error"] < 2 and 0 < floor["output_difference"] <= 1 and len(floor["layer_errors"]) == 6
    assert rows["model", "planned"]["output_difference"] <= floor["output_difference"]
    assert rows["model", "planned"]["over_floor"] == pytest.approx(
        floor["speedup"] / rows["model", "planned"]["speedup"]
    )
    memory = peak_memory(TESTBED, TokenLayout(4, 4, 4, 4))
    for row_ in (dense, rows["memory", "dense"]):  # the growth of resident memory is without what was there before
        assert row_["predicted_bytes"] == memory.peak - memory.weights - memory.images
    assert rows["kernels", "dense"]["error"] < 1e-5 < rows["kernels", "avggt"]["error"] < 1
    assert rows["kernels", "frame"]["flops"] == pytest.approx(rows["kernels", "dense"]["flops"] / 6)
    assert rows["spectra", "spectrum"]["singular_values"][0] >= 1 - 1e-5
    spectrum, forward = rows["spectra", "spectrum"], rows["spectra", "forward"]
    layout, D = TokenLayout(4, 4, 4, 4), TESTBED.head_dim
    assert forward["flops"] == Exact().cost(layout, D, 1).flops
    assert spectrum["flops"] == spectrum["forwards"] * forward["flops"] and spectrum["forwards"] > 1
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["machine"]["torch"] == torch.__version__ and written["machine"]["git_revision"]
    assert {"date", "threads", "device_name", "python", "cuda"} <= set(written["machine"])


def test_the_gpu_suite_at_reduced_size_on_the_cpu(tmp_path, no_setup, monkeypatch):
    """The path of the large cases: random weights, dense once, the rules linked to it by the plan; one in bfloat16."""
    small = profile_cases("gpu", "small")
    parts = {case.part: replace(case, frames=4, dtype="float32") for case in small if case.frames == 24}
    chosen = (
        replace(parts["dense and planned"], runs=("dense", "planned 10 %", "floor")),
        replace(parts["rules, first part"], runs=("planned 10 %", "avggt")),
        next(case for case in small if case.suite == "memory"),
    )
    monkeypatch.setattr(runner, "profile_cases", lambda *_: chosen)
    results = bench(tmp_path, profile="gpu", scale="small", device="cpu")
    assert statuses(results) == [OK] * 3
    rows = {(row["frames"], row["reference"], row["run"]): row for row in results["rows"]}
    dense, planned, floor = (rows[4, "dense", run] for run in ("dense", "planned 10 %", "floor"))
    assert planned["predicted_error"] <= 0.1 and dense["rounds"] == 1 and planned["rounds"] == 2
    assert floor["error"] is None and "random weights" in floor["error_basis"]
    assert "depth-mapped" in planned["basis"] and floor["speedup_basis"] == "same case, dense once"
    avggt = rows[4, "planned 10 %", "avggt"]
    assert avggt["speedup_basis"] == "through planned 10 %, dense in another case" and avggt["speedup"] > 0
    half = rows[2, "dense", "dense"]
    assert half["dtype"] == "bfloat16" and half["seconds"] > 0 and half["predicted_bytes"] < dense["predicted_bytes"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"profile": "laptop"}, "profile 'laptop' is unknown"),
        ({"only": "kernels,speed"}, "suite 'speed' is unknown"),
        ({"limit": 0.0}, "limit=0.0 must be"),
        ({"limit": float("nan")}, "limit=nan must be"),
        ({"device": "tpu"}, 'device "tpu"'),
        ({"scale": "small"}, "only the profile gpu"),
    ],
)
def test_bad_input_is_said_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(AccelError, match=message):
        bench(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_only_the_suites_asked_for_and_all_in_the_results(tmp_path, no_setup):
    bench(tmp_path, profile="tiny", device="cpu", only="kernels")
    results = bench(tmp_path, profile="tiny", device="cpu", only="spectra")
    assert {row["suite"] for row in results["rows"]} == {"kernels", "spectra"}


def test_what_only_leaves_out_is_said(tmp_path, no_setup):
    cases = {case.suite: case.name for case in profile_cases("tiny")}
    results = bench(tmp_path, profile="tiny", device="cpu", only="spectra")
    assert results["left"] == [] and results["not_asked"] == [cases[x] for x in ("kernels", "model", "memory")]
    results = bench(tmp_path, profile="tiny", device="cpu", only="kernels")
    assert results["not_asked"] == [cases[x] for x in ("model", "memory")]
    assert json.loads((tmp_path / "results.json").read_text())["not_asked"] == results["not_asked"]


def test_the_folder_of_a_run_is_refused_before_anything_runs(scripted, tmp_path):
    clock, _, ran = scripted
    (tmp_path / "results.json").write_text('{"time": {}}')
    with pytest.raises(AccelError, match="not a benchmark's"):
        go(tmp_path, clock)
    assert ran == [] and [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == '{"time": {}}'


def test_an_interrupt_in_the_first_case_leaves_a_folder_that_continues(scripted, tmp_path):
    clock, does, _ = scripted

    def interrupt():
        raise KeyboardInterrupt

    does[FIRST] = interrupt
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, clock)
    del does[FIRST]
    assert statuses(go(tmp_path, clock)) == [OK] * 3


def test_on_a_gpu_the_predicted_bytes_have_weights_and_images():
    case = profile_cases("tiny")[1]
    policies = (Exact(),) * TESTBED.depth
    memory = peak_memory(TESTBED, case.layout)
    assert predicted_bytes(case, policies, torch.device("cuda")) == memory.peak


@pytest.mark.parametrize(
    "name", ["a.py", "data/measured_sparsity.json", "data/testbed.safetensors", "data/scene/0.png"]
)
def test_the_code_version_knows_sources_and_data(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    monkeypatch.setattr(workspace, "accel", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    seen = {workspace.code_version()}
    for text in ("one", "two"):
        path.write_text(text)
        seen.add(workspace.code_version())
    (tmp_path / "tables.py").write_text("presentation")
    assert len(seen | {workspace.code_version()}) == 3
