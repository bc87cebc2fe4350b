"""The page: the numbers of results.json, nothing from outside; and the small functions behind it."""

import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from accel import figures, report
from accel.run import run
from tests.accel.test_run import write_scene, write_weights


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return run([write_scene(folder)], folder / "out", weights=str(write_weights(folder)), tolerance=0.2, probe_frames=3)


@pytest.fixture(scope="module")
def page(done):
    return (done.out / "report.html").read_text(encoding="utf-8")


def test_the_numbers_of_the_results_are_on_the_page(done, page):
    r = done.results
    shown = [report.times(r["time"][name]) for name in ("ratio", "planned_ratio")]
    shown += [f"{report.number(r['time'][name])} s" for name in ("dense_s", "accelerated_s")]
    shown += [report.percent(r["output_difference"][name]) for name in ("depth", "points", "translation", "total")]
    shown += [report.percent(r["predicted_difference"])]
    for row in r["layers"]:
        shown += [report.percent(row[f"{kind}_error"]) for kind in ("predicted", "measured")]
        shown += [report.number(row[f"effective_rank_{kind}"]) for kind in ("predicted", "measured")]
        shown += [report.thousands(row["keys_per_query"]), report.duration(row["planned_s"])]
    for values in r["truth"].values():
        shown += [report.number(values["auc_30"]), report.percent(values["depth_abs_rel"])]
    for name in ("effective_rank", "stable_rank"):
        shown += [report.percent(x) for x in r["prediction"][name].values()]
    assert [text for text in shown if text not in page] == []


def test_the_page_is_self_contained(page):
    assert all(x.startswith("data:image/") for x in re.findall(r'src="([^"]*)"', page))
    assert all(x.startswith(("#", "data:image/")) for x in re.findall(r'href="([^"]*)"', page))
    assert "<script" not in page and "<link" not in page and "@import" not in page
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_figures_take_their_colours_from_the_page(page):
    assert page.count("<svg") >= 3 + 4 + 3
    style, body = page.split("</style>", 1)
    for colour, variable in figures.VARIABLES.items():
        assert colour not in body
        assert f"{variable}:" in style, variable
    assert "prefers-color-scheme: dark" in page


def test_file_names_are_escaped(done):
    images = replace(done.images, paths=tuple(p.with_name(f"<b>{p.name}") for p in done.images.paths))
    text = report.render(replace(done, images=images))
    assert "<b>0.png" not in text and "&lt;b&gt;0.png" in text


def test_absent_parts_are_said_to_be_absent(done):
    bare = replace(done, ranks=None, predicted=None, measured=None, truth=None, notes=("Ranks were not predicted.",))
    text = report.render(replace(bare, results=report.summarise(bare)))
    assert "Ranks were not predicted." in text and "Against the truth" not in text
    assert "The spectra were not measured in this run" in text


def test_drawing_leaves_matplotlib_as_it_was(done):
    before = dict(matplotlib.rcParams)
    report.draw(done)
    assert dict(matplotlib.rcParams) == before


def test_drawing_is_reproducible(done):
    assert report.draw(done)["ranks"] == report.draw(done)["ranks"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1234.5, "1,234"), (0.0123456, "0.0123"), (12.0, "12.0"), (-3.14159, "-3.14")],
)
def test_number(value, text):
    assert report.number(value) == text


def test_units():
    assert report.percent(0.01234) == "1.2 %" and report.percent(0.5) == "50.0 %" and report.percent(None) == "–"
    assert report.duration(0.0021) == "2.1 ms" and report.duration(12.34) == "12.3 s"
    assert report.times(2.128) == "2.13×" and report.short("subsample: 1 in 4, shrunk") == "subsample: 1 in 4"
    assert report._json({"a": (np.float32(1), float("nan"), [np.int64(2)])}) == {"a": [1.0, None, [2]]}


def test_pose_errors_of_a_known_turn():
    rng = np.random.default_rng(0)
    true = np.concatenate([Rotation.random(4, rng=rng).as_matrix(), rng.normal(size=(4, 3, 1))], -1)
    moved = true.copy()
    turn = Rotation.from_euler("z", 10, degrees=True).as_matrix()
    moved[2] = turn @ true[2]  # camera 2 turned about its own axis: its three pairs are off by 10 degrees
    rotation, _ = report._pose_errors(moved, true)
    np.testing.assert_allclose(np.sort(rotation), [0, 0, 0, 10, 10, 10], atol=1e-5)
    world = np.eye(4)
    world[:3] = np.concatenate([Rotation.random(rng=rng).as_matrix(), rng.normal(size=(3, 1))], -1)
    rotation, direction = report._pose_errors(true @ world, true)  # another world frame: no error
    np.testing.assert_allclose([rotation, direction], 0, atol=1e-5)


def test_truth_errors_of_the_truth(done):
    exact = done.dense | {"extrinsics": done.truth["extrinsics"], "depth": 3.0 * done.truth["depth"]}
    found = report.truth_errors(replace(done, dense=exact))["dense"]
    assert found["auc_30"] == 1 and found["depth_abs_rel"] == pytest.approx(0, abs=1e-6)


def test_the_baseline_says_at_how_many_tokens(done, page):
    tokens = done.results["probe"]["tokens"]
    assert done.results["probe"]["spectrum_tokens"] == tokens and f"own value at {tokens} tokens" in page
    fewer = done.profile.data.assign_attrs(spectrum_tokens=20)
    reduced = replace(done, profile=replace(done.profile, data=fewer))
    results = report.summarise(reduced)
    assert results["probe"]["spectrum_tokens"] == 20 and f"20 of its {tokens} tokens" in results["notes"][-1]
    assert "own value at 20 tokens" in report.render(replace(reduced, results=results))


def test_the_sign_of_the_translation_counts(done, page):
    poses = done.truth["extrinsics"].copy()
    poses[..., 3] *= -1  # every direction reversed
    found = report.truth_errors(replace(done, dense=done.dense | {"extrinsics": poses}))["dense"]
    assert found["auc_30"] == 0 and "sign of the translation counts" in page
