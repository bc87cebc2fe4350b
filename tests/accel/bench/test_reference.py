from dataclasses import replace

import numpy as np
import pytest

from accel.bench.reference import BASIS, CarriedErrors, candidates, depth_mapped, reference_schedule
from accel.bench.settings import by_depth
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models import TESTBED, VGGT_1B
from accel.options import allows
from accel.policies import BlockSparse
from accel.predictors import TheoryPredictor
from accel.schedule import plan
from tests.accel.bench.fakes import FEW, RATES

LAYOUT = TokenLayout(100, 5, 28, 37)


def test_candidates_are_distinct_and_serve_both_grids():
    found = candidates()
    assert len(set(found.values())) == len(found)
    for tried, used in found.items():
        assert allows(tried, TokenLayout(4, 4, 8, 8)) and allows(used, LAYOUT)
        assert tried == used or isinstance(used, BlockSparse)


def test_a_plan_stays_within_the_testbeds_errors(profile):
    schedule = reference_schedule(profile, VGGT_1B, LAYOUT, 0.05, RATES)
    assert schedule.layers == 24 and schedule.layout == LAYOUT
    assert 0 < schedule.predicted_total <= 0.05 * (1 + 1e-9)
    assert BASIS in schedule.predictor
    own = TheoryPredictor()(profile, replace(profile.layout, frames=100), schedule.policies)
    layers = by_depth(range(6), 24)
    assert np.allclose(schedule.predicted_error, [own[layers[i], i] for i in range(24)], rtol=1e-12)
    gains = profile.sensitivity(schedule.policies)
    assert np.allclose(schedule.sensitivity, [gains[layers[i], i] * 6 / 24 for i in range(24)], rtol=1e-12)


def test_more_tolerance_is_faster(profile):
    tight, loose = (reference_schedule(profile, VGGT_1B, LAYOUT, x, RATES) for x in (0.01, 0.2))
    assert loose.predicted_speedup > tight.predicted_speedup > 1


def test_the_testbed_gets_its_own_plan(profile):
    layout = TokenLayout(16, 4, 8, 8)
    mine = reference_schedule(profile, TESTBED, layout, 0.03, RATES)
    theirs = plan(profile, layout, predictor=TheoryPredictor(), tolerance=0.03, device=RATES)
    assert mine.policies == theirs.policies
    assert mine.predicted_total == pytest.approx(theirs.predicted_total)


def test_a_mapped_profile_is_of_the_other_model(profile):
    mapped = depth_mapped(profile, VGGT_1B, LAYOUT)
    assert mapped.layers == 24 and mapped.config == VGGT_1B
    mapped.check(LAYOUT)
    with pytest.raises(AccelError, match="the profile was made at"):
        profile.check(LAYOUT)
    for name in ("query", "term_query"):  # a query stays in its frame
        frame = mapped.data[name].values // LAYOUT.tokens_per_frame
        assert (frame == profile.data[name].values // profile.layout.tokens_per_frame).all()
    assert profile.layers == 6 and profile.options == FEW  # unchanged
    errors = CarriedErrors(profile)(mapped, LAYOUT, FEW)
    assert errors.shape == (24, len(FEW))
