import json

import pytest

from accel.bench.cases import Case
from accel.bench.store import FILE, RESULTS, Store, check_results
from accel.errors import AccelError

ROW = {"run": "dense", "status": "ok", "reason": "", "basis": "", "seconds": 1.0, "predicted_seconds": 1.0}
ROW |= {"speedup": 1.0, "seconds_quartiles": [1.0, 1.0], "speedup_quartiles": None}
CASE = Case("model", "testbed", 4, (4, 4), "float32", ("dense",), 1).to_dict() | {"grid": [4, 4], "runs": ["dense"]}
RECORD = {"fingerprint": "a", "case": CASE, "rows": [ROW], "status": "ok", "reason": ""}


def test_records_come_back_in_order(tmp_path):
    store = Store(tmp_path / "new")
    assert store.records() == []
    for name in "abc":
        store.append(RECORD | {"fingerprint": name})
    assert [record["fingerprint"] for record in store.records()] == ["a", "b", "c"]


@pytest.mark.parametrize("torn", [b'{"fingerprint": "b", "ca', b"\xff\xfe", b"[1, 2]", b'{"other": 1}', b"null"])
def test_a_torn_or_foreign_line_is_ignored_and_does_not_swallow_the_next(tmp_path, torn):
    store = Store(tmp_path)
    store.append(RECORD)
    with store.path.open("ab") as file:
        file.write(torn)
    assert store.records() == [RECORD]
    store.append(RECORD | {"fingerprint": "c"})
    assert [record["fingerprint"] for record in store.records()] == ["a", "c"]


def test_a_record_is_one_line_of_strict_json(tmp_path):
    store = Store(tmp_path)
    store.append(RECORD | {"reason": "two\nlines"})
    lines = store.path.read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["reason"] == "two\nlines"
    with pytest.raises(ValueError):
        store.append(RECORD | {"seconds": float("nan")})


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": ["a"]},
        {"status": None},
        {"reason": 3},
        {"rows": [1]},
        {"rows": [{"run": "dense"}]},
        {"rows": [ROW | {"seconds": "1"}]},
        {"rows": [ROW | {"speedup_quartiles": [1.0]}]},
        {"rows": [ROW | {"seconds_quartiles": ["a", "b"]}]},
        {"rows": [ROW | {"peak_bytes": "many"}]},
        {"case": {}},
        {"case": CASE | {"frames": "four"}},
        {"case": CASE | {"frames": 0}},
        {"case": CASE | {"model": []}},
        {"case": CASE | {"suite": "speed"}},
        {"case": CASE | {"runs": []}},
        {"case": CASE | {"grid": 4}},
    ],
)
def test_a_record_of_other_types_is_ignored_like_a_torn_line(tmp_path, change):
    store = Store(tmp_path)
    store.append(RECORD | change)
    assert store.records() == []
    store.append(RECORD)
    assert store.records() == [RECORD]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("text", ['{"machine": {}}', "[]", "{torn", None])
def test_results_that_are_no_benchmarks_are_not_overwritten(tmp_path, text, beside):
    """None: the keys of a benchmark, whose cases are missing."""
    check_results(tmp_path)  # nothing there
    keys = dict.fromkeys(("profile", "scale", "code", "left", "rows", "growth", "cases"))
    (tmp_path / RESULTS).write_text(json.dumps(keys) if text is None else text)
    if beside:
        (tmp_path / FILE).touch()
    if beside and text is None:
        check_results(tmp_path)
    else:
        with pytest.raises(AccelError, match=r"results\.json is not a benchmark's .*; give another --out"):
            check_results(tmp_path)
