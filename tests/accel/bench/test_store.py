import json

import pytest

from accel.bench.store import Store

RECORD = {"fingerprint": "a", "case": {}, "rows": []}


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
