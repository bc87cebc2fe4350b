"""What a planner chooses from, and which probed policy speaks for a longer stride."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.options import default_options, probed, strided
from accel.policies import Exact, Frame, Subsample, TemporalStride
from accel.predictors import TheoryPredictor, formula
from accel.profile import probe
from tests.accel.test_profile import generator, tiny

LAYOUT = TokenLayout(4, 4, 8, 8)


def test_options_cost_less_than_exact_and_can_be_applied():
    options = default_options(LAYOUT)
    exact = Exact().cost(LAYOUT, 1, 1).flops
    assert options[0] == Exact() and len(options) > 8
    for policy in options[1:]:
        policy.check(LAYOUT)
        assert policy.cost(LAYOUT, 1, 1).flops < exact


def test_strides_grow_with_the_frames_and_keep_so_many():
    base = TemporalStride(3, fill="shrink")
    many = replace(LAYOUT, frames=1000)
    found = strided((Exact(), base, Frame()), many)
    assert found[:3] == (Exact(), base, Frame())
    assert [policy.stride for policy in found[3:]] == [16, 32, 63, 125]
    assert all(policy.fill == "shrink" for policy in found[3:])
    assert strided((Exact(), base), LAYOUT) == (Exact(), base)
    assert strided((Exact(), Frame()), many) == (Exact(), Frame())


def test_a_longer_stride_is_spoken_for_by_the_probed_one():
    measured = (Frame(), TemporalStride(3, fill="shrink"), TemporalStride(2))
    assert probed(TemporalStride(40, fill="shrink"), measured) == measured[1]
    assert probed(TemporalStride(40), measured) == measured[2]
    assert probed(Exact(), measured) == Exact()
    for policy in (Subsample(stride=4), TemporalStride(40, own_key=False)):
        with pytest.raises(AccelError, match="was not probed"):
            probed(policy, measured)


def test_error_of_a_longer_stride_is_that_of_the_probed_one_with_more_noise():
    model, images = tiny(depth=2), torch.rand(1, 6, 3, 32, 32, generator=generator(1))
    base = TemporalStride(3, fill="mass")
    profile = probe(model, images, frames=6, options=(Exact(), base), queries=32, generator=generator(), progress=False)
    layout = replace(profile.layout, frames=48)
    short, long = TemporalStride(3, fill="mass"), TemporalStride(12, fill="mass")
    errors = TheoryPredictor()(profile, layout, [short, long])
    assert (errors[:, 1] > errors[:, 0]).all()
    here = formula(profile, profile.layout, [base])[:, 0]
    expected = profile.option_error([base])[:, 0] * formula(profile, layout, [long])[:, 0] / here
    np.testing.assert_allclose(errors[:, 1], expected, rtol=1e-12)
