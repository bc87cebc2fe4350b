"""Predictors: exact at the probe's own size, the exchangeability law, limits of the policies, the oracle."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from accel.cost import Device
from accel.error_terms import Rows, error_terms, few_queries, key_masses, noise_factor
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Context, Exact, Frame, PhasedGrid, Subsample, TemporalStride, registry
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
from accel.schedule import plan
from accel.statistics import CLASSES, VECTORS, option_errors, query_statistics, sample_queries
from tests.accel.test_profile import generator, tiny
from tests.tolerances import (
    EXACT_STATISTICS,
    FORMULA_FACTOR,
    GROWTH_OF_FEW,
    MONTE_CARLO_LAW,
    MOVING_OUTPUT,
    STORED_STATISTICS,
)


@pytest.fixture(scope="module")
def model():
    return tiny(depth=2)


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 6, 3, 32, 32, generator=generator(1))


@pytest.fixture(scope="module")
def profile(model, images):
    return probe(model, images, queries=32, generator=generator(), progress=False)


def layer_of(q, k, v, layout, policies, queries=None):
    """Statistics measured at this very layout in float64, and the terms of each policy there."""
    queries = torch.arange(layout.tokens) if queries is None else queries
    found = {name: x.numpy() for name, x in query_statistics(q, k, v, layout, queries).items()}
    first = (queries < layout.tokens_per_frame).numpy()
    mean_key = np.exp(found.pop("patch_logit"))
    statistics = ClassStatistics(layout=layout, **found, mean_key=mean_key, in_first=first, term_in_first=first)
    rows = Rows(q[None], k[None], v[None], layout, queries, Context())
    return statistics, [error_terms(p, rows) for p in policies]


def measured_error(q, k, v, layout, policy):
    return option_errors(q[None], k[None], v[None], layout, [policy])[0]


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


def test_constant_refuses_a_stride_that_was_not_probed(profile):
    base = next(p for p in profile.options if isinstance(p, TemporalStride))
    layout = replace(profile.layout, frames=64)
    longer = replace(base, stride=8)
    with pytest.raises(AccelError, match=r"stride=8.* was probed as .*use the theory predictor"):
        ConstantPredictor()(profile, layout, [Exact(), longer])
    assert TheoryPredictor()(profile, layout, [longer]).shape == (profile.layers, 1)


class Asked(Exception):
    """Carries what a plan asks of a predictor."""


@dataclass(frozen=True)
class Asking:
    carries: bool
    name: str = "asking"

    def __call__(self, profile, layout, policies):
        raise Asked(policies)


@pytest.mark.parametrize("carries", [True, False])
def test_plan_offers_longer_strides_to_predictors_that_carry_them(profile, carries):
    layout = replace(profile.layout, frames=64)
    with pytest.raises(Asked) as asked:
        plan(profile, layout, predictor=Asking(carries), tolerance=0.1, device=Device("test", 1.0, 1.0, 1.0, 1.0))
    (offered,) = asked.value.args
    longer = set(offered) - set(profile.options)
    assert all(isinstance(p, TemporalStride) for p in longer) and bool(longer) == carries
    assert TheoryPredictor.carries and OraclePredictor.carries and not ConstantPredictor.carries


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


def profile_of(profile, tensors, layout, policies):
    """The profile of a model of one layer with these q, k, v (H, N, D) and all queries in the sample."""
    queries = torch.arange(layout.tokens)
    found = query_statistics(*tensors, layout, queries)
    arrays = {name: x[None].numpy() for name, x in found.items()}
    rows = Rows(*(x[None] for x in tensors), layout, queries, Context())
    arrays["error_term"] = np.stack([error_terms(p, rows) for p in policies], 2)[None]
    dims = {"mass": ["query", "key_class"], "patch_logit": ["query"], "gram": ["query", "vector", "vector_2"]}
    dims |= {"error_term": ["term_query", "option", "term"]}
    data = profile.data.isel(layer=[0]).drop_dims(["query", "term_query", "option"])
    data = data.assign({n: (["layer", "head", *dims[n]], x) for n, x in arrays.items()})
    data = data.assign({n: ([n], queries.numpy()) for n in ("query", "term_query")})
    errors = option_errors(*(x[None] for x in tensors), layout, policies)
    data = data.assign(option_error=(["layer", "option"], np.array([errors])))
    measured = json.dumps([p.to_dict() for p in policies])
    return Profile(data.assign_attrs(layout=json.dumps(layout.to_dict()), measured=measured, candidates=len(policies)))


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_sums_over_exchangeable_frames_scale_with_their_number(profile, frames):
    """Copies of a frame are the one case in which the law holds for every realisation: carried equals measured."""
    policies = [Frame(), Subsample(window=(1, 3), fill="mass"), Subsample(window=(3, 1))]
    seen, tensors = exchangeable(4)
    four = profile_of(profile, tensors, seen, policies)
    to = replace(seen, frames=frames)
    carried = class_statistics(four, 0, to)
    layout, tensors = exchangeable(frames)
    if frames == 1:  # a frame that is not there cannot be compared; frame 0 can
        measured = query_statistics(*tensors, layout, torch.arange(layout.tokens))["mass"].numpy()
        own = carried.mass[:, : layout.tokens]
        assert np.allclose(own / own.sum(-1, keepdims=True), measured, atol=EXACT_STATISTICS)
        assert carried.weight.sum() == pytest.approx(1) and carried.weight[layout.tokens_per_frame :].sum() == 0
        return
    exact, terms = layer_of(*tensors, layout, policies)
    one = slice(0, 2 * layout.tokens_per_frame)  # frames 0 and 1 stand for all
    mass = carried.mass[:, one] / carried.mass[:, one].sum(-1, keepdims=True)
    assert np.allclose(mass, exact.mass[:, one], atol=EXACT_STATISTICS)
    found = formula(four, to, policies)[0]
    assert found[0] == pytest.approx(exact.error(Frame(), terms[0]), rel=EXACT_STATISTICS)
    # the terms take the output as it was at the probe
    within = STORED_STATISTICS if frames == 4 else MOVING_OUTPUT
    for j in (1, 2):
        assert found[j] == pytest.approx(exact.error(policies[j], terms[j]), rel=within)


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
    statistics, (terms,) = layer_of(q, k, v, layout, [policy], queries)
    limit = statistics.limit(policy)
    exact = statistics.mixture(statistics.mass)
    out = policy.attend(q[None], k[None], v[None], layout)[0][:, queries]
    dense = torch.softmax(q @ k.mT / 5**0.5, -1)[:, queries] @ v
    found = statistics._square(limit - exact)
    assert np.allclose(found, (out - dense).square().sum(-1), atol=EXACT_STATISTICS)
    assert (found.max() > 1e-3) == (fill == "none") and np.abs(terms[..., :3]).max() < EXACT_STATISTICS


def test_frame_error_is_an_identity():
    layout, (q, k, v) = exchangeable(3)
    v = v + torch.randn(v.shape, generator=generator(7)).double()
    statistics, (terms,) = layer_of(q, k, v, layout, [Frame()])
    measured = measured_error(q, k, v, layout, Frame())
    assert statistics.error(Frame(), terms) == pytest.approx(measured, rel=EXACT_STATISTICS)


@pytest.mark.parametrize(
    "policy",
    [
        *(Subsample(stride=4, fill=fill) for fill in ("none", "published", "count", "mass", "shrink")),
        Subsample(stride=4, fill="shrink", shrinkage=0.6),
        PhasedGrid(2),
        PhasedGrid.regime(1.5),
        TemporalStride(2),
        TemporalStride(2, own_key=False, fill="none"),
    ],
    ids=lambda p: f"{p.name} {p.fill}",
)
def test_independent_keys_follow_the_formula(policy):
    """Independent tokens: a fixed subset is as good as a random one, so the formula has to hold without calibration."""
    layout = TokenLayout(7, 1, 12, 12)
    q, k, v = (torch.randn(3, 8, layout.tokens, 8, generator=generator(5)).double() * 0.9).unbind(0)
    v = v + 0.5
    statistics, (terms,) = layer_of(q, k, v, layout, [policy], sample_queries(layout, 49, generator()))
    measured = measured_error(q, k, v, layout, policy)
    assert statistics.error(policy, terms) == pytest.approx(measured, rel=MONTE_CARLO_LAW)


@pytest.mark.parametrize(
    ("policy", "falls"),
    [(Subsample(stride=4, fill="mass", keep_first_frame=False), 0.0), (PhasedGrid(2), 0.5), (TemporalStride(2), 0.5)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_errors_that_frames_share_do_not_average_out(profile, policy, falls):
    """Frames that show the same: a fixed grid errs as much with 64 of them as with 9, a moving one by 1/sqrt(S) less.

    Temporal stride of independent frames falls so, too, without a calibration.
    """
    layout = TokenLayout(9, 1, 4, 4)
    q, k, v = torch.randn(3, 2, layout.tokens_per_frame, 6, generator=generator(2)).double().unbind(0)
    if policy.name == "temporal_stride":
        q, k, v = torch.randn(3, 2, layout.tokens, 6, generator=generator(2)).double().unbind(0)
    else:
        q, k, v = (x.repeat(1, layout.frames, 1) for x in (q, k, v))
    found = profile_of(profile, (q, k, v), layout, [policy])
    few, many = (formula(found, replace(layout, frames=n), [policy])[0, 0] for n in (9, 129))
    factors = [noise_factor(policy, replace(layout, frames=n)) for n in (129, 9)]
    expected = (9 / 129) ** falls * (factors[0] / factors[1]) ** 0.5
    assert many / few == pytest.approx(expected, rel=GROWTH_OF_FEW)


def test_noise_factor_of_a_temporal_stride():
    """Frames 1.. in groups: {1, 2, 3} at 4 frames, {1, 2, 3}, {4, 5}, {6, 7} at 8: sum m (m - 1) per frame."""
    one, two = TokenLayout(4, 1, 2, 2), TokenLayout(8, 1, 2, 2)
    assert noise_factor(TemporalStride(2), one) == pytest.approx(6 / 3)
    assert noise_factor(TemporalStride(2), two) == pytest.approx((6 + 2 + 2) / 7)
    assert noise_factor(TemporalStride(2, fill="none"), two) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 7)
    assert noise_factor(Subsample(stride=4), two) == 1


def test_own_mass_against_dense(profile, model, images):
    assert profile.data["mass"].sum("key_class").values == pytest.approx(1, abs=EXACT_STATISTICS)
    own = [CLASSES.index(a) for a in ("self", "own_special", "own_patch")]
    measured = profile.data["mass"].values[..., own].sum(-1).mean((1, 2))
    assert own_mass(profile, profile.layout) == pytest.approx(measured)
    assert (own_mass(profile, replace(profile.layout, frames=32)) < measured).all()
    assert len(VECTORS) == profile.data.sizes["vector"]


def test_a_policy_without_a_formula_is_refused(profile):
    none = Profile(profile.data.assign(error_term=profile.data["error_term"] * np.nan))
    with pytest.raises(AccelError, match="no error formula for policy 'frame'; use the constant"):
        formula(none, profile.layout, [Frame()])
    with pytest.raises(AccelError, match=r"stride=9.*was not probed"):
        formula(profile, profile.layout, [Subsample(stride=9)])


@pytest.mark.parametrize("policy", [Subsample(stride=4, fill="mass"), PhasedGrid(3), PhasedGrid(4, 3)])
def test_one_of_the_draws_is_the_policy(policy):
    layout = TokenLayout(5, 2, 8, 8)
    draws, mine = key_masses(policy, layout), policy.select(layout)
    found = np.zeros(layout.tokens)
    found[mine.kept] = mine.mass
    assert np.array_equal(draws[0], found)
    assert len(draws) <= 16 and np.allclose(draws.sum(1), layout.tokens)


def test_few_queries_are_spread_over_the_frames():
    layout = TokenLayout(3, 2, 8, 8)
    queries = sample_queries(layout, 120, generator())
    few = few_queries(layout, queries)
    assert np.bincount(few // layout.tokens_per_frame).tolist() == [14, 14, 14]
    assert set(few.tolist()) <= set(queries.tolist())


EXAMPLES = [policy for cls in registry().values() for policy in cls.examples()]


@pytest.mark.parametrize("policy", EXAMPLES, ids=lambda p: f"{p.name} {EXAMPLES.index(p)}")
def test_every_policy_declares_its_error(policy):
    """Tokens with moderate logits and correlated neighbours: predicted within a factor of the error carried out."""
    layout = TokenLayout(4, 2, 6, 6)
    noise = torch.randn(3, 2, layout.tokens, 8, generator=generator(11)).double()
    scene = torch.randn(3, 2, layout.tokens_per_frame, 8, generator=generator(12)).double().repeat(1, 1, 4, 1)
    q, k, v = (0.5 * noise + 0.7 * scene).unbind(0)
    statistics, (terms,) = layer_of(q, k, v, layout, [policy])
    measured, predicted = measured_error(q, k, v, layout, policy), statistics.error(policy, terms)
    if measured < EXACT_STATISTICS:
        assert predicted < 1e3 * EXACT_STATISTICS
    else:
        assert 1 / FORMULA_FACTOR < predicted / measured < FORMULA_FACTOR
