"""Rank definitions: bounds, invariances and known values."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from meanfield import ranks
from tests import tolerances as tol

MEASURES = (ranks.effective_rank, ranks.effective_rank_energy, ranks.stable_rank, ranks.participation_ratio)
spectra = arrays(np.float64, st.integers(1, 12), elements=st.floats(0.0, 10.0)).filter(lambda s: s.max() > 1e-3)


@settings(deadline=None)
@given(spectra, st.floats(1e-6, 1e6))
def test_ranks_lie_between_one_and_the_number_of_values_and_ignore_scale_order_and_zeros(s, scale):
    for measure in MEASURES:
        rank = measure(s)
        assert 1.0 - tol.MEANFIELD_ROUNDING <= rank <= np.count_nonzero(s) + 1e-9
        for same in (s * scale, s[::-1], np.append(s, [0.0, 0.0])):
            assert measure(same) == pytest.approx(float(rank), rel=tol.MEANFIELD_ROUNDING)


@settings(deadline=None)
@given(spectra)
def test_ranks_are_ordered(s):
    """Renyi entropies fall with their order: effective >= energy >= participation >= stable."""
    values = [float(measure(s)) for measure in MEASURES]
    values[2], values[3] = values[3], values[2]
    for larger, smaller in itertools.pairwise(values):
        assert smaller <= larger * (1.0 + tol.MEANFIELD_ROUNDING)


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0.1, 10.0))
def test_equal_singular_values_give_their_number(n, value):
    for measure in MEASURES:
        assert measure(np.full(n, value)) == pytest.approx(n, rel=tol.MEANFIELD_ROUNDING)


def test_definitions_on_two_values():
    s = np.array([3.0, 1.0])
    p = s / 4.0
    assert ranks.effective_rank(s) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=tol.MEANFIELD_ROUNDING)
    p = s**2 / 10.0
    assert ranks.effective_rank_energy(s) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=tol.MEANFIELD_ROUNDING)
    assert ranks.stable_rank(s) == pytest.approx(10.0 / 9.0, rel=tol.MEANFIELD_ROUNDING)
    assert ranks.participation_ratio(s) == pytest.approx(100.0 / 82.0, rel=tol.MEANFIELD_ROUNDING)


def test_spectra_are_vectorised_over_leading_axes():
    s = np.random.default_rng(0).random((2, 3, 5))
    for measure in MEASURES:
        assert measure(s).shape == (2, 3)
        assert measure(s)[1, 2] == pytest.approx(float(measure(s[1, 2])), rel=tol.MEANFIELD_ROUNDING)


def test_token_ranks_of_a_centred_cloud():
    x = np.random.default_rng(1).standard_normal((40, 6)) + 5.0
    assert ranks.token_ranks(x)["stable_rank"] < 1.2
    assert 4.0 < ranks.token_ranks(x, centred=True)["stable_rank"] <= 6.0
    with pytest.raises(ValueError, match="zero throughout"):
        ranks.token_ranks(np.ones((5, 3)), centred=True)


def test_attention_entropy_of_uniform_and_one_hot_rows():
    assert ranks.attention_entropy(np.full((3, 8), 1 / 8)) == pytest.approx(np.log(8), rel=tol.MEANFIELD_ROUNDING)
    assert ranks.attention_entropy(np.eye(4)) == 0.0
    with pytest.raises(ValueError, match="after the softmax"):
        ranks.attention_entropy(np.ones((2, 2)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1.0, np.nan], "nan"),
        ([1.0, -0.5], "-0.5"),
        ([], "at least one"),
        ([0.0, 0.0], "zero throughout"),
        (1.0, "axis"),
    ],
)
def test_bad_spectra_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        ranks.effective_rank(bad)
