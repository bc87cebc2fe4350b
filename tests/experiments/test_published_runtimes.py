"""The comparison with published runtimes: the data, the rule of calibration, the fit."""

import csv
from collections import Counter
from dataclasses import replace

import pytest

from accel.backbones import backbone
from accel.devices import Efficiencies, load_table
from accel.policies import Exact, Frame, Merge, Subsample
from experiments.published_memory import GIB, predict_gib
from experiments.published_rows import DATA, load, policies, timed
from experiments.published_runtimes import (
    PEAKS,
    Table,
    attention_from,
    baselines,
    calibration,
    fit,
    median_error,
    summary,
)
from tests.tolerances import REFITTED


@pytest.fixture(scope="module")
def rows():
    return load()[0]


def test_every_row_is_read_or_says_why_not(rows):
    excluded = load()[1]
    with DATA.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) + len(excluded) == len(lines) == len({tuple(line.values()) for line in lines})
    assert all(len(line["excluded"]) > 10 for line in excluded)
    assert all((row.seconds or row.gib) and row.frames > 0 and row.device in PEAKS for row in rows)
    reasons = Counter(line["excluded"].split(":")[0] for line in excluded)
    assert reasons["frames not stated"] > 5 and reasons["copy of FastVGGT Tab.2"] == 2


def test_calibration_is_by_dense_rows_of_one_source(rows):
    chosen = calibration(rows)
    assert {device: group[0].source for device, group in chosen.items()} == {
        "A100": "AVGGT",
        "A800": "Pi3 benchmark",
        "H100": "PaceVGGT",
        "H100 FA3": "VGGT README",
        "H20": "LiteVGGT",
        "H800": "FlashVGGT",
        "V100": "vggt issue 116",
    }
    for device, group in chosen.items():
        assert len({row.source for row in group}) == 1
        assert all(row.policy == "dense" and row.device == device and not row.effort for row in group)
    assert [row.frames for row in chosen["H100 FA3"]] == [1, 4, 10, 50, 200]  # its only source: every second row
    assert {row.layout.tokens_per_frame for row in chosen["V100"]} == {930}


def test_no_held_out_row_is_a_calibration_row_of_its_source_once_more(rows):
    def cell(row):
        return row.source, row.device, row.backbone, row.dataset, row.layout, row.policy, row.heads

    chosen = [row for group in calibration(rows).values() for row in group]
    held = [row for row in timed(rows) if not any(row is other for other in chosen)]
    assert len(held) == 98 and not {cell(row) for row in held} & {cell(row) for row in chosen}
    reasons = Counter(line["excluded"].split(":")[0] for line in load()[1])
    assert reasons["same cell as a calibration row"] == 1 and reasons["out of memory (OOM) in the source"] == 1


def test_a_left_out_source_calibrates_nothing(rows):
    assert calibration(rows, without="AVGGT")["A100"][0].source == "HTTM"


def test_published_settings(rows):
    found = {(row.backbone, row.policy): policies(row) for row in rows}
    assert found["vggt", "dense"] is None
    assert found["vggt", "fastvggt"] == (Merge.fastvggt(),) * 24 and len(found["pi3", "fastvggt"]) == 18
    later = found["vggt", "fastvggt:10:0.3"]
    assert later == (Exact(),) * 10 + (replace(Merge.fastvggt(), keep=0.7),) * 14
    assert found["vggt", "avggt:9"] == (Frame(),) * 9 + (Subsample.avggt(9),) * 15
    assert found["pi3", "avggt:9"] == (Frame(),) * 10 + (Subsample.avggt(9, keep_first_frame=False),) * 8
    strides = [p.policies[1].stride for p in found["vggt", "spark3r"]]
    assert strides == [75] * 11 + [25] * 6 + [75] * 7


def test_the_fit_finds_the_rates_that_made_the_times(rows):
    shared = Efficiencies(block_bytes=5e5, launch=2e-4, heads=0.2)
    rates = {name: 0.45 * peak for name, (peak, *_) in PEAKS.items()}
    true = Table(shared, rates)
    made = [replace(row, seconds=true.seconds(row)) for row in timed(rows)]
    found = fit(calibration(made))
    assert found.shared.block_bytes == pytest.approx(5e5, rel=REFITTED)
    assert found.shared.launch == pytest.approx(2e-4, rel=REFITTED)
    assert found.shared.heads == pytest.approx(0.2, rel=REFITTED)
    assert found.attention == pytest.approx({name: rates[name] for name in found.attention}, rel=REFITTED)


def test_an_outlier_does_not_rule_the_fit(rows):
    known = Table(Efficiencies(), {"A800": 1.5e14})
    made = [replace(row, seconds=known.seconds(row)) for row in calibration(rows)["A800"]]
    made[0] = replace(made[0], seconds=2 * made[0].seconds)
    assert attention_from(made, "A800", known).attention["A800"] == pytest.approx(1.5e14, rel=0.03)


def test_the_table_of_devices_is_what_the_calibration_gives(rows):
    shared, gpus = load_table()
    found = fit(calibration(rows))
    assert found.shared.block_bytes == pytest.approx(shared.block_bytes, rel=REFITTED)
    assert found.shared.launch == pytest.approx(shared.launch, rel=REFITTED)
    assert set(gpus) == set(PEAKS)
    for name, gpu in gpus.items():
        assert found.gpu(name).attention == pytest.approx(gpu.attention, rel=REFITTED)
        assert (gpu.peak, gpu.bandwidth, gpu.memory) == PEAKS[name]


def test_baselines_go_through_their_rows(rows):
    readme = [row for row in rows if row.source == "VGGT README"]
    one, many = readme[0], readme[-1]
    at = baselines({"H100 FA3": [one, many]}, many)
    assert at["line"] == pytest.approx(many.seconds) and at["quadratic"] > many.seconds
    assert baselines({"H100 FA3": [many]}, one)["quadratic"] == pytest.approx(many.seconds / 200**2)


def test_memory_counts_weights_images_and_what_is_alive():
    layout = backbone("vggt").layout(100, 336, 518)
    expected = 2 * 909e6 + 100 * (893 * 1024 * 222 + 2 * 4 * 3 * 336 * 518)
    assert predict_gib("vggt", layout, heads=False) == pytest.approx(expected / GIB)
    assert predict_gib("vggt", layout, heads=True) < predict_gib("vggt", layout, heads=False)


def test_errors_are_relative_to_the_published():
    assert median_error([(1.1, 1.0), (0.5, 1.0), (1.0, 1.0)]) == pytest.approx(0.1)
    records = [{"device": d, "predicted": p, "seconds": 1.0} for d, p in (("a", 2.0), ("a", 1.0), ("b", 0.5))]
    found = summary(records, "device")
    assert found["a"] == {"rows": 2, "median_error": 0.5, "median_ratio": 1.5} and found["b"]["median_error"] == 0.5
