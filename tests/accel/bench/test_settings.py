import json

import pytest

from accel.bench import settings
from accel.bench.cases import LAYER, PLANS, Case, profile_cases
from accel.bench.settings import (
    BLOCKS,
    DENSE,
    block_density,
    by_depth,
    layer_settings,
    measured_sparsity,
    model_settings,
)
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models import TESTBED
from accel.policies import BlockSparse, Merge

VGGT_LAYOUT = TokenLayout(200, 5, 28, 37)
PROFILES = [("cpu", "full"), ("quick", "full"), ("tiny", "full"), ("gpu", "full"), ("gpu", "small")]


def test_layers_by_relative_depth():
    assert by_depth("abcdef", 24) == [x for x in "abcdef" for _ in range(4)]
    assert by_depth("abcdef", 6) == list("abcdef")
    assert by_depth("abcdef", 3) == list("bdf")


@pytest.mark.parametrize("kept", [0.02, 0.25, 0.7])
def test_a_density_keeps_the_fraction_of_blocks_asked_for(kept):
    layout = TokenLayout(64, 0, 32, 64)
    blocks = layout.tokens // BLOCKS[1]
    policy = BlockSparse(density=block_density(kept, BLOCKS[1]))
    assert abs(policy.kept_blocks(layout)[0] - kept * blocks) <= 1


def test_measured_sparsity_is_of_the_testbed():
    data = measured_sparsity()
    assert data["tolerance"] == 0.1 and data["frames"] >= 8
    for row in (*data["block_sparse"].values(), data["merge"]["keep"], *data["errors"].values()):
        assert len(row) == TESTBED.depth and all(x > 0 for x in row)
    for row in (*data["block_sparse"].values(), data["merge"]["keep"]):
        assert max(row) <= 1
    assert all(
        a <= b for a, b in zip(*(data["block_sparse"][k] for k in ("kept", "kept_without_stand_ins")), strict=True)
    )
    settings_of_one_layer = layer_settings(TokenLayout(16, 4, 8, 8), None, blocks=(8, 4))
    assert set(data["errors"]) == {name for name, x in settings_of_one_layer.items() if not x.reason}


def test_a_missing_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "sparsity_file", lambda: tmp_path / "none.json")
    with pytest.raises(AccelError, match=r"none\.json is missing; install"):
        measured_sparsity.__wrapped__()


def test_what_was_measured_says_so():
    data = measured_sparsity()
    for found in (layer_settings(VGGT_LAYOUT, data), model_settings(VGGT_LAYOUT, 24, data)):
        for name, kind in (("merge", Merge), ("block-sparse", BlockSparse)):
            assert "testbed" in found[name].basis and all(isinstance(p, kind) for p in found[name].policies)
        assert all("testbed" not in x.basis for name, x in found.items() if name not in ("merge", "block-sparse"))
    keeps = [policy.keep for policy in found["merge"].policies]
    assert keeps == by_depth(data["merge"]["keep"], 24)


def test_what_is_exact_or_impossible_is_skipped_with_the_reason():
    few = layer_settings(TokenLayout(8, 5, 28, 37), None)
    assert "exact attention" in few["spark3r"].reason and not few["avggt"].reason
    tiny = model_settings(TokenLayout(2, 4, 3, 3), 6, measured_sparsity())
    assert "finds no full block" in tiny["faster-vggt"].reason
    assert "exact attention" in model_settings(TokenLayout(100, 5, 28, 37), 24, None)["spark3r"].reason
    assert not model_settings(TokenLayout(101, 5, 28, 37), 24, None)["spark3r"].reason


@pytest.mark.parametrize("profile, scale", PROFILES)
def test_every_case_is_known_and_survives_json(profile, scale):
    cases = profile_cases(profile, scale)
    assert len(set(cases)) == len(cases) == len({case.name for case in cases})
    assert {case.suite for case in cases} == {"kernels", "model", "memory", "spectra"}
    whole = {DENSE, *PLANS, *model_settings(TokenLayout(4, 4, 8, 8), 6, measured_sparsity())}
    for case in cases:
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case
        assert not case.once or case.runs[0] == DENSE
        known = {"kernels": {DENSE, "attend", "attend, masses", *LAYER}, "spectra": {"forward", "spectrum"}}
        assert set(case.runs) <= known.get(case.suite, whole)


def test_the_gpu_profile_has_the_sizes_asked_for():
    cases = profile_cases("gpu")
    dense = {case.frames for case in cases if case.suite == "model" and case.runs[0] == DENSE}
    assert dense == {100, 300, 500, 800, 1000}
    assert all(case.layout.tokens_per_frame == 1041 for case in cases)
    tokens = [case.layout.tokens for case in cases if case.suite == "kernels"]
    assert [round(n, -4) for n in tokens] == [10_000, 30_000, 100_000, 300_000, 1_000_000]
    for frames in dense:  # whatever is not timed beside dense is beside what was
        here = [case for case in cases if case.frames == frames and case.suite == "model"]
        assert all(case.runs[0] in here[0].runs for case in here) and here[0].runs[0] == DENSE
        runs = {run for case in here for run in case.runs}
        assert {
            *PLANS,
            "dense",
            "planned",
            "floor",
            "avggt",
            "fastvggt",
            "faster-vggt",
            "spark3r",
            "regimevggt",
        } <= runs


@pytest.mark.parametrize(
    "arguments, message",
    [(("laptop",), "profile"), (("cpu", "small"), "small scale"), (("gpu", "huge"), "scale 'huge'")],
)
def test_unknown_profiles_are_said(arguments, message):
    with pytest.raises(AccelError, match=message):
        profile_cases(*arguments)
