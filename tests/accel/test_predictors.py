"""Predictors: exact at the probe's own size, the exchangeability law, limits of the policies, the oracle."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Exact, Frame, Subsample
from accel.predictors import (
    ClassStatistics,
    ConstantPredictor,
    OraclePredictor,
    TheoryPredictor,
    class_statistics,
    formula,
    own_mass,
)
from accel.profile import Profile, probe
from accel.statistics import CLASSES, VECTORS, option_errors, query_statistics, sample_queries
from tests.accel.test_profile import generator, tiny
from tests.tolerances import EXACT_STATISTICS, MONTE_CARLO_LAW, STORED_STATISTICS


@pytest.fixture(scope="module")
def model():
    return tiny(depth=2)


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 6, 3, 32, 32, generator=generator(1))


@pytest.fixture(scope="module")
def profile(model, images):
    return probe(model, images, queries=32, generator=generator(), progress=False)


def statistics_of(q, k, v, layout, queries=None):
    """Class statistics measured at this very layout, all in float64."""
    queries = torch.arange(layout.tokens) if queries is None else queries
    found = {name: x.numpy() for name, x in query_statistics(q, k, v, layout, queries).items()}
    mean_key = np.exp(found.pop("patch_logit"))
    first = (queries < layout.tokens_per_frame).numpy()
    share = np.where(first, 1 / layout.frames / first.sum(), (1 - 1 / layout.frames) / (~first).sum())
    return ClassStatistics(layout=layout, **found, mean_key=mean_key, in_first=first, weight=share)


def test_theory_equals_the_measurement_at_the_probe(profile):
    for predictor in (TheoryPredictor(), ConstantPredictor()):
        found = predictor(profile, profile.layout, profile.options)
        assert np.allclose(found, profile.option_error(profile.options), rtol=EXACT_STATISTICS)
    assert (found[:, 1:] > 0).all() and (found[:, 0] == 0).all()


def test_constant_is_constant_and_theory_is_not(profile):
    layout = replace(profile.layout, frames=16)
    here = ConstantPredictor()(profile, profile.layout, profile.options)
    assert np.array_equal(ConstantPredictor()(profile, layout, profile.options), here)
    assert not np.allclose(TheoryPredictor()(profile, layout, profile.options), here, rtol=0.02)
    names = {p.name for p in (TheoryPredictor(), TheoryPredictor(calibrated=False), ConstantPredictor())}
    assert len(names) == 3


def test_oracle_measures_at_full_size(model, images, profile):
    layout = model.layout(images)
    found = OraclePredictor(model, images)(profile, layout, [Exact(), Frame()])
    again = OraclePredictor(model, images[:, :4])(profile, profile.layout, profile.options)
    assert np.allclose(again, profile.option_error(profile.options), atol=STORED_STATISTICS)
    assert found.shape == (2, 2) and (found[:, 0] == 0).all() and not np.allclose(found[:, 1], again[:, 1], rtol=1e-3)
    with pytest.raises(AccelError, match="oracle has images"):
        OraclePredictor(model, images)(profile, profile.layout, profile.options)


def exchangeable(frames, dim=6, heads=2):
    """q, k, v whose frames after the first are copies of one another, specials apart from patches."""
    layout = TokenLayout(frames, 2, 3, 3)
    first, other = (
        torch.randn(3, heads, layout.tokens_per_frame, dim, generator=generator(s)).double() for s in (1, 2)
    )
    return layout, torch.cat([first] + [other] * (frames - 1), 2).unbind(0)


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_sums_over_exchangeable_frames_scale_with_their_number(profile, frames):
    """Copies of a frame are the one case in which the law holds for every realisation: carried equals measured."""
    seen, tensors = exchangeable(4)
    queries = torch.arange(seen.tokens)
    found = query_statistics(*tensors, seen, queries)
    arrays = {name: x[None].numpy() for name, x in found.items()}
    dims = {"mass": ["key_class"], "squared": ["patch_class"], "square_energy": ["patch_class"], "patch_logit": []}
    dims |= {"gram": ["vector", "vector_2"]}
    data = profile.data.isel(layer=[0]).drop_dims("query")
    data = data.assign({n: (["layer", "head", "query", *dims[n]], x) for n, x in arrays.items()})
    data = data.assign({"query": (["query"], queries.numpy())})
    carried = class_statistics(
        Profile(data.assign_attrs(layout=json.dumps(seen.to_dict()))), 0, replace(seen, frames=frames)
    )
    layout, tensors = exchangeable(frames)
    if frames == 1:  # a frame that is not there cannot be compared; frame 0 can
        measured = query_statistics(*tensors, layout, torch.arange(layout.tokens))["mass"].numpy()
        own = carried.mass[:, : layout.tokens]
        assert np.allclose(own / own.sum(-1, keepdims=True), measured, atol=EXACT_STATISTICS)
        assert carried.weight.sum() == pytest.approx(1) and carried.weight[layout.tokens_per_frame :].sum() == 0
        return
    exact = statistics_of(*tensors, layout)
    one = slice(0, 2 * layout.tokens_per_frame)  # frames 0 and 1 stand for all
    mass = carried.mass[:, one] / carried.mass[:, one].sum(-1, keepdims=True)
    assert np.allclose(mass, exact.mass[:, one], atol=EXACT_STATISTICS)
    squared = carried.squared[:, one] / carried.mass[:, one].sum(-1, keepdims=True) ** 2
    assert np.allclose(squared, exact.squared[:, one], atol=EXACT_STATISTICS)
    assert carried.error(Frame()) == pytest.approx(exact.error(Frame()), rel=EXACT_STATISTICS)


@pytest.mark.parametrize("fill", ["none", "mass"])
@pytest.mark.parametrize("keep", [True, False])
def test_limit_is_the_policy_where_windows_are_constant(fill, keep):
    """With equal keys and values in a window there is no sampling noise, and the limit is the policy's output."""
    layout = TokenLayout(3, 1, 4, 4)
    q, k, v = torch.randn(3, 2, layout.tokens, 5, generator=generator(3)).double().unbind(0)
    policy = Subsample(stride=4, fill=fill, keep_first_frame=keep)
    stand_in = Subsample(stride=4, keep_first_frame=False).select(layout).stand_in
    k, v = k[:, stand_in], v[:, stand_in]
    kept = policy.select(layout).dropped.logical_not().nonzero()[:, 0]
    queries = kept[torch.isin(kept, layout.special_index())]  # a patch is more of itself than of its window's class
    statistics = statistics_of(q, k, v, layout, queries)
    limit, _ = statistics.limit(policy)
    exact = statistics.mixture(statistics.mass)
    out = policy.attend(q[None], k[None], v[None], layout)[0][:, queries]
    dense = torch.softmax(q @ k.mT / 5**0.5, -1)[:, queries] @ v
    found = statistics._square(limit - exact)
    assert np.allclose(found, (out - dense).square().sum(-1), atol=EXACT_STATISTICS)
    assert (found.max() > 1e-3) == (fill == "none")


def test_frame_error_is_an_identity():
    layout, (q, k, v) = exchangeable(3)
    v = v + torch.randn(v.shape, generator=generator(7)).double()
    measured = option_errors(q[None], k[None], v[None], layout, [Frame()])[0]
    assert statistics_of(q, k, v, layout).error(Frame()) == pytest.approx(measured, rel=EXACT_STATISTICS)


@pytest.mark.parametrize("fill", ["none", "mass", "shrink"])
def test_subsampling_of_independent_keys_follows_the_formula(fill):
    """Independent tokens: a grid is as good as a random sample, so the formula has to hold without calibration."""
    layout = TokenLayout(6, 1, 12, 12)
    q, k, v = (torch.randn(3, 2, layout.tokens, 8, generator=generator(5)).double() * 0.9).unbind(0)
    v = v + 0.5
    policy = Subsample(stride=4, fill=fill)
    measured = option_errors(q[None], k[None], v[None], layout, [policy])[0]
    predicted = statistics_of(q, k, v, layout, sample_queries(layout, 96, generator())).error(policy)
    assert predicted == pytest.approx(measured, rel=MONTE_CARLO_LAW)


def test_shared_noise_enters_with_the_number_of_thinned_frames():
    layout, (q, k, v) = exchangeable(4)
    plain = statistics_of(q, k, v, layout)
    shared = replace(plain, common=0.2)
    policy = Subsample(window=(3, 1), fill="mass")
    assert shared.error(policy) == pytest.approx(plain.error(policy) * (1 + 2 * 0.2) ** 0.5, rel=EXACT_STATISTICS)


def test_own_mass_against_dense(profile, model, images):
    assert profile.data["mass"].sum("key_class").values == pytest.approx(1, abs=EXACT_STATISTICS)
    own = [CLASSES.index(a) for a in ("self", "own_special", "own_patch")]
    measured = profile.data["mass"].values[..., own].sum(-1).mean((1, 2))
    assert own_mass(profile, profile.layout) == pytest.approx(measured)
    assert (own_mass(profile, replace(profile.layout, frames=32)) < measured).all()
    assert len(VECTORS) == profile.data.sizes["vector"]


def test_a_policy_without_a_formula_is_refused(profile):
    class Foreign(Frame):
        name = "foreign"

    with pytest.raises(AccelError, match="no error formula for policy 'foreign'"):
        formula(profile, profile.layout, [Foreign()])
