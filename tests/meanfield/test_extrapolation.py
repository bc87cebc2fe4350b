"""Extrapolation of measured spectra in N, on tokens uniform on spheres, against the baselines it has to beat."""

import numpy as np
import pytest

from meanfield import ranks
from meanfield.extrapolation import SLOPE_RANGE, SUMMABLE, ProbeLaw, one_probe_law, two_probe_law
from meanfield.params import preset
from tests import tolerances as tol
from tests.meanfield.dense import sphere_singular_values

CASES = [(8, 3.0), (16, 4.0), (8, 6.0), (3, 10.0)]


@pytest.fixture(scope="module")
def spectra():
    rng = np.random.default_rng(1)
    return {case: [sphere_singular_values(rng, n, *case) for n in (100, 200, 800)] for case in CASES}


def _error(predicted, measured):
    return abs(np.log(predicted / measured))


def test_two_probes_beat_unchanged_and_the_power_law(spectra):
    law, unchanged, power = [], [], []
    for small, large, target in spectra.values():
        truth, at_small, at_large = (float(ranks.effective_rank(s)) for s in (target, small, large))
        law.append(_error(two_probe_law(small, 100, large, 200).ranks(800)["effective_rank"], truth))
        unchanged.append(_error(at_large, truth))
        power.append(_error(at_large * (at_large / at_small) ** 2, truth))
    assert max(law) < tol.MEANFIELD_TWO_PROBES
    assert np.median(law) < 0.5 * np.median(power) and np.median(law) < 0.2 * np.median(unchanged)


def test_one_probe_beats_unchanged(spectra):
    law, unchanged = [], []
    for _, large, target in spectra.values():
        truth = float(ranks.effective_rank(target))
        law.append(_error(one_probe_law(large, 200).ranks(800)["effective_rank"], truth))
        unchanged.append(_error(ranks.effective_rank(large), truth))
    assert max(law) < tol.MEANFIELD_ONE_PROBE
    assert np.median(law) < 0.5 * np.median(unchanged)


def test_the_resolved_law_inverts_its_own_map(spectra):
    """At N = N_0 the law gives back the probe; only the assumed tail (P above .3 N_0) can differ."""
    large = spectra[8, 3.0][1]
    again = one_probe_law(large, 200).ranks(200)
    assert again["effective_rank"] == pytest.approx(ranks.effective_rank(large), rel=tol.MEANFIELD_ONE_PROBE_TAIL)
    for name in ("stable_rank", "participation_ratio"):
        measured = ranks.spectrum_ranks(large)[name]
        assert again[name] == pytest.approx(measured, rel=tol.MEANFIELD_ROUNDING)


def test_two_probes_are_calibrated_on_the_larger(spectra):
    small, large, _ = spectra[16, 4.0]
    law = two_probe_law(small, 100, large, 200)
    first = one_probe_law(small, 100)
    moved = type(first)(first.values, 100, law.tail_factor).ranks(200)["effective_rank"]
    assert moved == pytest.approx(ranks.effective_rank(large), rel=tol.MEANFIELD_CALIBRATION)


def test_no_rank_of_the_preset_grows_faster_than_n():
    """From the probe to 1e12 tokens, at every head of every scene; misses of the calibration are recorded."""
    params = preset("testbed")
    tokens = np.exp(np.arange(np.log(params.probe_tokens[-1]), np.log(1e12), 1.0))
    laws = [law for member in params.replicates[:3] for law in member.laws.unique]
    for law in laws:
        found = law.ranks(tokens)
        for name in ("effective_rank", "effective_rank_energy", "stable_rank", "participation_ratio"):
            assert np.diff(np.log(found[name])).max() < 1.0, name
        slopes = np.diff(np.log(law.p)) / np.diff(law.log_w)
        assert slopes.max() < SLOPE_RANGE[1] + tol.MEANFIELD_GRID and slopes[-1] <= SUMMABLE + tol.MEANFIELD_EXACT
    assert 0.0 < np.mean([not law.calibrated for law in laws]) < 0.5


def test_probes_that_no_tail_connects_say_so(spectra):
    small, large, _ = spectra[8, 3.0]
    assert two_probe_law(small, 100, large, 200).calibrated
    low = np.array([1.0, 0.3, *(0.1 * 0.5 ** np.arange(98))])
    high = np.append(1.0, np.full(199, 0.3))
    law = two_probe_law(low, 100, high, 200)
    assert not law.calibrated and law.tail_factor * law.slope >= SLOPE_RANGE[1]
    assert not one_probe_law(large, 200).calibrated


def test_a_sink_grows_as_seen_between_the_probes():
    rest = 0.3 * 0.9 ** np.arange(40)
    law = two_probe_law(np.append(2.0, rest), 64, np.append(2.0 * 2**0.25, rest), 128)
    assert law.leading(512) == pytest.approx(2.0 * 8**0.25, rel=tol.MEANFIELD_ROUNDING)
    assert law.leading(1e12) <= 1e6
    assert law.singular_values(512, 3)[0] == pytest.approx(2.0 * 8**0.25, rel=tol.MEANFIELD_ROUNDING)
    assert law.ranks(512)["stable_rank"] == pytest.approx(law.ranks(128)["stable_rank"], rel=tol.MEANFIELD_ROUNDING)
    grown = law.ranks(512)["frobenius"] / law.ranks(128)["frobenius"]
    assert grown == pytest.approx(4**0.25, rel=tol.MEANFIELD_ROUNDING)


def test_top_singular_values_are_carried(spectra):
    _, large, target = spectra[8, 3.0]
    carried = one_probe_law(large, 200).singular_values(800, 8)
    assert carried == pytest.approx(target[:8], rel=tol.MEANFIELD_CARRIED)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: one_probe_law(s, 50), "N=50"),
        (lambda s: one_probe_law(np.append(s[1:], np.nan), 100), "nan"),
        (lambda s: one_probe_law(-s, 100), "not negative"),
        (lambda s: one_probe_law(s[:4], 100), "at least 8"),
        (lambda s: two_probe_law(s, 200, s, 100), "smaller"),
        (lambda s: one_probe_law(s, 100).singular_values(1000, 90), "k=90"),
        (lambda s: one_probe_law(s, np.nan), "probe_tokens contains nan"),
        (lambda s: ProbeLaw(s, 100, tail_factor=np.nan), "tail_factor contains nan"),
        (lambda s: ProbeLaw(s, 100, tail_factor=-1.0), "tail_factor=-1"),
        (lambda s: ProbeLaw(s, 100, growth_exponent=np.nan), "growth_exponent contains nan"),
        (lambda s: one_probe_law([1.0, 1e-300, *np.zeros(8)], 100), "rank one"),
        (lambda s: one_probe_law([1.0, 1e-160, *np.zeros(8)], 100), "rank one"),
        (lambda s: one_probe_law(s * 1e-200, 100), "rank one"),
        (lambda s: one_probe_law(s * 1e200, 100), "two largest"),
    ],
)
def test_bad_probes_are_named(spectra, call, message):
    with pytest.raises(ValueError, match=message):
        call(spectra[8, 3.0][0])
