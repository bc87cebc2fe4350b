"""Sizes as people write them."""

import pytest

from accel.errors import AccelError
from accel.parse import parse_bytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12GB", 12e9),
        ("76 GiB", 76 * 2**30),
        ("500mb", 5e8),
        ("1.5T", 1.5e12),
        ("8e9", 8e9),
        ("64", 64),
        ("2KiB", 2048),
    ],
)
def test_sizes(text, value):
    assert parse_bytes(text) == value and parse_bytes(None) is None


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "12 gigs", "0", "nan", "1e999GB", "12GBB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(AccelError, match="such as 12GB"):
        parse_bytes(text)
