"""TokenLayout: counts, indices, validation, JSON."""

import json

import pytest
import torch

from accel.errors import AccelError
from accel.layout import TokenLayout


def test_counts_and_indices():
    layout = TokenLayout(frames=3, special=2, grid_h=2, grid_w=4)
    assert (layout.patches_per_frame, layout.tokens_per_frame, layout.tokens) == (8, 10, 30)
    assert layout.special_index().tolist() == [0, 1, 10, 11, 20, 21]
    assert layout.patch_index().tolist() == [n for n in range(30) if n % 10 >= 2]
    assert layout.frame_of().tolist() == [n // 10 for n in range(30)]
    assert layout.by_frame()[2].tolist() == list(range(20, 30))
    assert layout.grid().shape == (3, 2, 4)
    assert layout.grid()[1, 1, 3] == 10 + 2 + 1 * 4 + 3
    assert all(x.dtype == torch.long for x in (layout.special_index(), layout.patch_index(), layout.frame_of()))


def test_specials_only_and_patches_only():
    assert TokenLayout(2, 3, 0, 0).patch_index().tolist() == []
    assert TokenLayout(2, 0, 1, 2).special_index().tolist() == []


@pytest.mark.parametrize(
    "bad", [(0, 1, 2, 2), (1, -1, 2, 2), (1, 1, 0, 2), (1, 1, 2, -2), (1, 0, 0, 0), (1.0, 1, 2, 2)]
)
def test_invalid_layouts_name_the_value(bad):
    with pytest.raises(AccelError, match="TokenLayout"):
        TokenLayout(*bad)


def test_check_names_value_and_remedy():
    layout = TokenLayout(2, 5, 3, 3)
    layout.check(28)
    with pytest.raises(AccelError, match=r"N=1041 is not frames\*\(special\+grid_h\*grid_w\) for TokenLayout\("):
        layout.check(1041)


def test_json_round_trip():
    layout = TokenLayout(2, 5, 3, 4)
    assert TokenLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    with pytest.raises(AccelError, match="fields"):
        TokenLayout.from_dict({"frames": 2})
