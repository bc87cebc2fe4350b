"""Prediction intervals: the textbook interval, its coverage, and the measured model error."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from meanfield.extrapolation import one_probe_law
from meanfield.params import RankParams
from meanfield.predict import predict_rank, predict_spectrum
from meanfield.ranks import effective_rank
from meanfield.uncertainty import (
    SHARE,
    SINGLE_SHARE,
    known_misses,
    model_error,
    no_interval,
    prediction_interval,
    single_interval,
)
from tests import tolerances as tol

LAYERS, HEADS, PER_FRAME, SCENES = 4, 2, 30, 3


def scene(seed):
    """A made-up probe at 2 and 4 frames: power-law spectra whose strength the scene sets, growing tokens."""
    rng = np.random.default_rng(seed)
    strength = np.exp(0.1 * rng.standard_normal((LAYERS, HEADS, 1)))

    def spectrum(tokens):
        k = np.arange(2.0, tokens + 1.0)
        return np.concatenate([np.ones((LAYERS, HEADS, 1)), 0.8 * strength / k**1.5 * (1.0 - k / (tokens + 1.0))], -1)

    entropy = np.log(4 * PER_FRAME) - 0.5 - 0.1 * strength[..., 0]
    return {
        "singular_values": spectrum(4 * PER_FRAME),
        "small_singular_values": spectrum(2 * PER_FRAME),
        "frames": 4,
        "small_frames": 2,
        "tokens_per_frame": PER_FRAME,
        "head_dim": 16,
        "entropy": entropy,
        "small_entropy": entropy - 0.9 * np.log(2.0),
        "token_energies": np.outer(1.0 + np.arange(LAYERS + 1.0), [0.3, 0.1, 0.6]) * strength.mean(),
        "token_effective_rank": np.full(LAYERS, 20.0 * strength.mean()),
    }


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed) for seed in range(SCENES)]


@pytest.fixture(scope="module")
def ensemble(scenes):
    return RankParams.from_probes(scenes, name="made up")


def test_coverage_of_lognormal_replicates():
    """500 repetitions, 6 replicates: a new draw lies inside as often as the level says."""
    rng, runs, count = np.random.default_rng(1), 500, 6
    draws = np.exp(2.0 + 0.3 * rng.standard_normal((count + 1, runs)))
    for level in (0.8, 0.95):
        found = prediction_interval(draws[:count], level=level)
        covered = np.mean((found.low <= draws[count]) & (draws[count] <= found.high))
        assert abs(covered - level) < tol.SIGMAS * np.sqrt(level * (1.0 - level) / runs)


def test_coverage_with_a_noisy_extrapolation_and_a_model_error():
    """Scenes of scatter .2, extrapolated with noise .3 each, by a law wrong by N(0, .25): three parts, each counted."""
    rng, runs, count = np.random.default_rng(2), 4000, 8
    scatter, noise, wrong = 0.2, 0.3, 0.25
    at_probe = scatter * rng.standard_normal((count, runs))
    values = at_probe + noise * rng.standard_normal((count, runs)) + wrong * rng.standard_normal(runs)
    new = scatter * rng.standard_normal(runs)
    found = prediction_interval(values, at_probe=at_probe, model_error=wrong, level=0.8, log=False)
    covered = np.mean((found.low <= new) & (new <= found.high))
    assert abs(covered - 0.8) < tol.MEANFIELD_COVERAGE
    bare = prediction_interval(values, at_probe=at_probe, level=0.8, log=False)
    assert np.mean((bare.low <= new) & (new <= bare.high)) < 0.8 - tol.MEANFIELD_COVERAGE


def test_the_interval_is_the_textbook_one():
    y = np.array([1.0, 2.0, 4.0, 8.0])
    found = prediction_interval(y, level=0.9)
    logs = np.log(y)
    half = stats.t.ppf(0.95, 3) * logs.std(ddof=1) * np.sqrt(1.0 + 1.0 / 4.0)
    expected = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    assert [found.value, found.low, found.high] == pytest.approx(expected, rel=tol.MEANFIELD_ROUNDING)
    assert found.se == pytest.approx(found.value * logs.std(ddof=1) * np.sqrt(1.25), rel=tol.MEANFIELD_ROUNDING)


def test_misses_are_those_of_the_smaller_probe(scenes, ensemble):
    tokens = 4 * PER_FRAME
    step = np.array(
        [
            [
                np.mean([one_probe_law(head, 2 * PER_FRAME).ranks(np.array(float(tokens)))["effective_rank"]
                         for head in np.asarray(small)])
                for small in arrays["small_singular_values"]
            ]
            / effective_rank(arrays["singular_values"]).mean(1)
            for arrays in scenes
        ]
    )  # fmt: skip
    found = known_misses(ensemble)
    expected = np.sqrt(np.mean(np.log(step).mean(0) ** 2))
    assert found["attention_effective_rank"].step == pytest.approx(expected, rel=1e-3)
    assert found["entropy"].step == pytest.approx(0.1 * np.log(2.0), rel=tol.MEANFIELD_EXACT)


def test_the_model_error_grows_with_the_logarithm_of_n(ensemble):
    misses, tokens = known_misses(ensemble), PER_FRAME * np.array([4.0, 8.0, 16.0])
    for name, share in SHARE.items():
        found = model_error(name, misses, ensemble, tokens)
        assert found == pytest.approx(share * misses[name].step * np.array([0.0, 1.0, 2.0]), rel=tol.MEANFIELD_EXACT)
    assert not model_error("spread", misses, ensemble, tokens).any()
    one = ensemble.replicates[0]
    name, misses = "attention_stable_rank", known_misses(one)
    found = model_error(name, misses, one, tokens)
    expected = np.hypot(misses[name].own, SINGLE_SHARE[name] * misses[name].step * np.array([0.0, 1.0, 2.0]))
    assert found == pytest.approx(expected, rel=tol.MEANFIELD_EXACT)


def test_predictions_carry_their_intervals(ensemble):
    tokens = PER_FRAME * np.array([4.0, 16.0, 64.0])
    found = predict_rank(LAYERS, tokens, params=ensemble)
    plain = [name for name in found.data_vars if f"{name}_se" in found and not name.startswith("depth_")]
    assert {"attention_effective_rank", "entropy", "token_effective_rank", "spread", "norm_growth"} <= set(plain)
    for name in plain:
        value, se, low, high = (found[f"{name}{suffix}"].values for suffix in ("", "_se", "_low", "_high"))
        assert np.isfinite([value, se, low, high]).all() and (low <= value).all() and (value <= high).all(), name
    rank = found.attention_effective_rank
    alone = [predict_rank(LAYERS, tokens, params=one).attention_effective_rank for one in ensemble.replicates]
    assert np.log(rank.values) == pytest.approx(np.mean(np.log(alone), axis=0), rel=tol.MEANFIELD_EXACT)
    width = np.log(found.attention_effective_rank_high / found.attention_effective_rank_low)
    assert (np.diff(width, axis=1) > 0.0).all() and "3 probed scenes" in found.attrs["interval"]
    narrow = predict_rank(LAYERS, tokens, params=ensemble, level=0.5)
    assert (narrow.spread_high < found.spread_high).all() and narrow.attrs["level"] == 0.5


def test_one_probe_of_two_sizes_has_model_error_only(ensemble):
    found = predict_rank(LAYERS, 16 * PER_FRAME, params=ensemble.replicates[0])
    assert found.attrs["interval"].startswith("the probed scene itself")
    assert (found.attention_stable_rank_low < found.attention_stable_rank).all()
    assert np.isnan(found.spread_low).all() and np.isnan(found.token_effective_rank_se).all()


def test_without_an_honest_interval_there_is_none(scenes):
    single = {key: value for key, value in scenes[0].items() if not key.startswith("small_")}
    for params, why in ((RankParams.from_probe(single), "one probe of one size"), ("vggt-init", "given")):
        found = predict_rank(LAYERS, 200, params=params)
        assert found.attrs["interval"].startswith("none") and why in found.attrs["interval"]
        assert np.isnan(found.attention_effective_rank_low).all() and np.isfinite(found.spread).all()
    assert np.isnan(no_interval([1.0]).se).all()


def test_spectra_of_replicates_have_standard_errors(ensemble):
    found = predict_spectrum(ensemble, 8 * PER_FRAME, k=5)
    errors = [name for name in found.data_vars if name.endswith("_se")]
    assert len(errors) == 7 and all(np.isfinite(found[name]).all() for name in errors)
    assert (found.effective_rank_se > 0.0).all() and found.attrs["probes"] == SCENES


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prediction_interval([1.0]), "1 replicates"),
        (lambda: prediction_interval([1.0, 2.0], level=0.0), "level=0"),
        (lambda: prediction_interval([1.0, -2.0]), "-2"),
        (lambda: prediction_interval([1.0, np.nan]), "nan"),
        (lambda: prediction_interval([1.0, 2.0], model_error=-1.0), "model_error=-1"),
        (lambda: predict_rank(2, 100, level=1.5), r"level=1\.5"),
        (lambda: prediction_interval([1.0, 2.0], at_probe=[1.0]), "at_probe has shape"),
        (lambda: prediction_interval([1.0, 2.0], at_probe=3.0), "at_probe has shape"),
        (lambda: single_interval(-1.0, 0.1, layers=3, level=0.9, log=True), "value=-1"),
        (lambda: single_interval(1.0, np.nan, layers=3, level=0.9, log=True), "model_error contains nan"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_replicates_must_be_alike(ensemble):
    with pytest.raises(ValueError, match="1 replicates"):
        replace(ensemble, replicates=ensemble.replicates[:1])
    with pytest.raises(ValueError, match="of the same layers"):
        replace(ensemble, replicates=(ensemble.replicates[0].first(2), *ensemble.replicates[1:]))
