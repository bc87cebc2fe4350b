import json
import math

import pytest
from matplotlib.figure import Figure

from accel.bench.cases import Case
from accel.bench.figures import PUBLISHED, _panel, figure
from accel.bench.results import assemble, clean, growth
from accel.bench.tables import footnotes, summary, tables
from accel.bench.timing import OK, SKIPPED

MACHINE = {"device_name": "a GPU", "torch": "2", "date": "2026-01-01T00:00:00Z", "threads": 1, "git_revision": "abc"}


def row(run, seconds, speedup=None, **more):
    quartiles = None if speedup is None else [0.9 * speedup, 1.1 * speedup]
    found = {"run": run, "status": OK, "reason": "", "basis": "b", "seconds": seconds, "rounds": 2, "error": None}
    found |= {"seconds_quartiles": [0.9 * seconds, 1.1 * seconds], "speedup": speedup, "speedup_quartiles": quartiles}
    return found | {"peak_bytes": int(1e9 * seconds), "tflops": 1.0} | more


def record(case, *rows):
    return {
        "case": case.to_dict(),
        "rows": list(rows),
        "status": OK,
        "reason": "",
        "memory_basis": "m",
        "name": case.name,
    }


def whole_run():
    shared = {"model": "vggt-1b", "grid": (28, 37), "dtype": "bfloat16", "rounds": 2}
    first = Case("model", frames=1000, runs=("dense", "planned", "floor"), once=True, part="a", **shared)
    second = Case("model", frames=1000, runs=("planned", "avggt", "spark3r"), part="b", **shared)
    alone = Case("model", frames=800, runs=("planned", "avggt"), part="b", **shared)
    skipped = {"run": "spark3r", "status": SKIPPED, "reason": "why not", "seconds": None, "speedup": None, "basis": "b"}
    return assemble(
        [
            record(first, row("dense", 240.0, 1.0), row("planned", 20.0, 12.0), row("floor", 16.0, 15.0)),
            record(second, row("planned", 22.0, 1.0), row("avggt", 44.0, 0.5), skipped | {"speedup_quartiles": None}),
            record(alone, row("planned", 20.0, 1.0), row("avggt", 30.0, 2 / 3)),
        ]
    )


def test_a_ratio_over_dense_goes_through_what_both_cases_timed():
    rows = {(r["frames"], r["reference"], r["run"]): r for r in whole_run()["rows"]}
    linked = rows[1000, "planned", "avggt"]
    assert linked["speedup"] == pytest.approx(0.5 * 240 / 20)
    assert linked["speedup_quartiles"] == pytest.approx([0.45 * 12, 0.55 * 12])
    assert linked["speedup_basis"].startswith("through planned")
    assert rows[1000, "dense", "planned"]["speedup"] == 12.0
    assert rows[1000, "dense", "planned"]["speedup_basis"] == "same case, dense once"
    assert rows[800, "planned", "avggt"]["speedup"] is None  # dense was never timed there
    assert rows[800, "planned", "avggt"]["speedup_basis"] is None
    assert rows[1000, "planned", "spark3r"]["status"] == SKIPPED


def test_plans_are_compared_with_the_floor_in_ratios_over_dense():
    rows = whole_run()["rows"]
    assert [r.get("over_floor") for r in rows if r["run"] == "planned"] == [15 / 12, pytest.approx(15 / 12), None]


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_growth_finds_the_exponent(exponent):
    about = {"suite": "memory", "model": "m", "dtype": "float32", "reference": "dense"}
    rows = [
        about | row("dense", 1e-9 * n**exponent) | {"frames": n, "tokens": n, "peak_bytes": 7 * n}
        for n in (10, 100, 1000, 2000, 4000)
    ]
    rows[0]["seconds"] = rows[1]["seconds"] = 5.0  # small sizes do not count
    (found,) = growth(rows)
    assert found["tokens"] == [1000, 2000, 4000]
    assert found["seconds"] == pytest.approx(exponent) and found["peak_bytes"] == pytest.approx(1.0)
    assert growth(rows[:1]) == []


def test_tables_and_notes_say_what_the_numbers_rest_on():
    results = whole_run() | {"machine": MACHINE, "left": ["a case"], "not_asked": ["b", "c"], "ignored": 2}
    results["profile"] = "gpu"
    (table,) = tables(results)
    cells = [list(column.cells) for column in table.columns]
    names = [name.strip() for name in cells[0]]
    assert cells[3][names.index("avggt")].endswith(" *")
    assert "once" not in cells[2] and "skipped" in cells[1]
    notes = "\n".join(footnotes(results))
    for part in ("a GPU", "b: why not", "Random weights", "*: dense ran once", "left: 1 cases", "2 earlier cases"):
        assert part in notes
    assert "--only, and not measured: 2 cases" in notes
    assert "spark3r: without" not in notes  # it was skipped
    line = json.loads(json.dumps(summary(results)))
    assert line["left"] == ["a case"] and line["not_asked"] == ["b", "c"] and line["statuses"] == {"ok": 3}
    assert {r["run"] for r in line["ratios"]} == {"dense", "planned", "floor", "avggt"}


def test_a_figure_of_anything_and_of_nothing(tmp_path):
    for name, results in (("some.png", whole_run()), ("none.png", assemble([]))):
        figure(results | {"machine": MACHINE}, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.png", "some.png"]


def test_a_ratio_of_one_round_says_once_and_spark3r_what_it_leaves_out():
    case = Case("model", "testbed", 128, (8, 8), "float32", ("dense", "spark3r"), 1)
    once = {"rounds": 1, "speedup_quartiles": None, "seconds_quartiles": None}
    results = assemble([record(case, row("dense", 2.6, 1.0) | once, row("spark3r", 2.0, 1.3) | once)])
    results |= {"machine": MACHINE, "left": [], "not_asked": [], "ignored": 0, "profile": "cpu"}
    (table,) = tables(results)
    ratios = list(table.columns[3].cells)
    assert ratios[-1] == "1.3 once" and list(table.columns[2].cells)[-1] == "once"
    assert any(note.startswith("spark3r: without the paper's probe") for note in footnotes(results))


def test_the_figure_draws_the_brackets_of_the_results_and_none_for_one_round():
    rows = whole_run()["rows"]
    points = [r for r in rows if r["run"] == "planned" and r["frames"] == 1000 and r["reference"] == "dense"]
    points[0] |= {"speedup_quartiles": [12.5, 14.0]}  # even where the ratio is outside
    points += [points[0] | {"frames": 500, "speedup_quartiles": None}]
    axes = Figure().subplots()
    _panel(axes, points, "model", "frames", "speedup")
    (spread,) = axes.collections
    assert [segment.tolist() for segment in spread.get_segments()] == [[[1000, 12.5], [1000, 14.0]]]


def test_published_ratios_carry_their_source():
    for name, source, points in PUBLISHED:
        assert name and "arXiv" in source
        assert all(frames >= 100 and 1 < ratio < 30 for frames, ratio in points)
        if "2511.21317" in source:  # its dense seconds of 100 and 1,000 frames are those of another paper's A800
            assert [frames for frames, _ in points] == [300]
    assert max(ratio for _, _, points in PUBLISHED for _, ratio in points) == pytest.approx(27.1, abs=0.05)


def test_results_are_strict_json():
    assert clean({"a": (1, math.nan, [math.inf]), "b": "text"}) == {"a": [1, None, [None]], "b": "text"}
