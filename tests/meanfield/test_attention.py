"""Blocked attention against its naive twin, and the matrix-free identities of section 7 against dense matrices."""

import tracemalloc

import numpy as np
import pytest

from meanfield import attention as at
from meanfield.measure import unit
from tests import tolerances as tol
from tests.meanfield.dense import softmax


@pytest.fixture
def case():
    """Queries, keys, values, log masses and a scale that makes uneven rows."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((70, 6)), rng.standard_normal((90, 6)), rng.standard_normal((90, 4))
    return q, k, v, np.log(rng.integers(1, 4, 90)), 1.3


@pytest.mark.parametrize("massive", [False, True])
@pytest.mark.parametrize(("block", "workers"), [(256, 1), (32, 1), (7, 2)])
def test_blocks_equal_the_naive_twin(case, massive, block, workers):
    q, k, v, log_mass, scale = case
    log_mass = log_mass if massive else None
    blocked = at.attend(q, k, v, log_mass=log_mass, scale=scale, block=block, workers=workers)
    naive = at.attend_naive(q, k, v, log_mass=log_mass, scale=scale)
    for fast, plain in zip(blocked, naive, strict=True):
        assert fast == pytest.approx(plain, rel=tol.MEANFIELD_ROUNDING, abs=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize("scale", [1.5, -2.0, 60.0])
@pytest.mark.parametrize(("block", "workers"), [(256, 1), (32, 1), (7, 2)])
def test_symmetric_blocks_equal_the_naive_twin(case, scale, block, workers):
    """scale 60 makes logits of several hundreds, beyond what is exponentiated without a maximum."""
    _, x, v, log_mass, _ = case
    fast = at.attend_symmetric(x, v, log_mass=log_mass, scale=scale, block=block, workers=workers)
    plain = at.attend_naive(x, x, v, log_mass=log_mass, scale=scale)
    for one, other in zip(fast, plain, strict=True):
        assert one == pytest.approx(other, rel=tol.MEANFIELD_SHARP_ROWS, abs=tol.MEANFIELD_SHARP_ROWS)


def test_logits_beyond_the_range_of_floats(case):
    q, k, v, log_mass, _ = case
    for shift in (-5000.0, 5000.0):
        out, lse = at.attend(q, k, v, log_mass=log_mass + shift, scale=400.0, block=16)
        expected, expected_lse = at.attend_naive(q, k, v, log_mass=log_mass, scale=400.0)
        assert out == pytest.approx(expected, abs=tol.MEANFIELD_SHARP_ROWS)
        assert lse == pytest.approx(expected_lse + shift, rel=tol.MEANFIELD_ROUNDING)


def test_a_key_of_mass_m_is_m_equal_keys(case):
    q, k, v, log_mass, scale = case
    count = np.exp(log_mass).round().astype(int)
    keys, values = np.repeat(k, count, axis=0), np.repeat(v, count, axis=0)
    for one, other in zip(
        at.attend(q, k, v, log_mass=log_mass, scale=scale), at.attend(q, keys, values, scale=scale), strict=True
    ):
        assert one == pytest.approx(other, rel=tol.MEANFIELD_ROUNDING, abs=tol.MEANFIELD_ROUNDING)


def test_float32_is_an_option(case):
    q, k, v, log_mass, scale = case
    exact = at.attend(q, k, v, log_mass=log_mass, scale=scale)[0]
    out, lse = at.attend(q, k, v, log_mass=log_mass, scale=scale, dtype=np.float32)
    assert out.dtype == lse.dtype == np.float32
    assert np.abs(out - exact).max() < tol.MEANFIELD_FLOAT32
    x = unit(k)
    single = at.attend_symmetric(x, v, scale=scale, dtype=np.float32)[0]
    assert np.abs(single - at.attend_symmetric(x, v, scale=scale)[0]).max() < tol.MEANFIELD_FLOAT32


@pytest.mark.parametrize(
    "call", [lambda x: at.attend(x, x, x, block=64), lambda x: at.attend_symmetric(x, x, block=64)]
)
def test_memory_is_linear_in_the_number_of_tokens(call):
    peaks = []
    for tokens in (1000, 2000, 4000):
        x = unit(np.random.default_rng(0).standard_normal((tokens, 8)))
        tracemalloc.start()
        call(x)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < tol.MEANFIELD_LINEAR_MEMORY * (peaks[1] - peaks[0])


def test_identities_without_the_matrix(case):
    """Item 14 of the test list: |A|_F^2, effective keys, entropies and A^T y against the dense matrix."""
    q, k, _, _, scale = case
    a = softmax(scale * q @ k.T)
    y = np.random.default_rng(1).standard_normal((70, 3))
    options = {"scale": scale, "block": 16}
    assert at.frobenius_squared(q, k, **options) == pytest.approx((a**2).sum(), rel=tol.MEANFIELD_ROUNDING)
    assert at.effective_keys(q, k, **options) == pytest.approx(1.0 / (a**2).sum(1), rel=tol.MEANFIELD_ROUNDING)
    entropies = -(a * np.log(a)).sum(1)
    assert at.row_entropies(q, k, **options) == pytest.approx(entropies, rel=tol.MEANFIELD_ROUNDING)
    assert at.attend_transposed(q, k, y, **options) == pytest.approx(a.T @ y, abs=tol.MEANFIELD_ROUNDING)
    lse = at.attend(q, k, k, scale=scale)[1]
    assert at.attend_transposed(q, k, y, lse=lse, **options) == pytest.approx(a.T @ y, abs=tol.MEANFIELD_ROUNDING)


def test_identities_with_masses_are_those_of_equal_keys(case):
    q, k, _, log_mass, scale = case
    count = np.exp(log_mass).round().astype(int)
    keys = np.repeat(k, count, axis=0)
    for identity in (at.frobenius_squared, at.effective_keys, at.row_entropies):
        massive = identity(q, k, log_mass=log_mass, scale=scale)
        assert massive == pytest.approx(identity(q, keys, scale=scale), rel=tol.MEANFIELD_ROUNDING)
    y = np.random.default_rng(1).standard_normal((70, 3))
    weights = softmax(scale * q @ k.T + log_mass)
    transposed = at.attend_transposed(q, k, y, log_mass=log_mass, scale=scale)
    assert transposed == pytest.approx(weights.T @ y, abs=tol.MEANFIELD_ROUNDING)


@pytest.mark.filterwarnings("error")
def test_identities_stay_in_their_ranges(case):
    """Masses of e^{1e4} leave |A|_F^2 finite; logits of 1e4 leave entropies of one key at 0 or above."""
    q, k, _, log_mass, scale = case
    once = at.log_effective_keys(q, k, log_mass=log_mass, scale=scale)
    shifted = at.log_effective_keys(q, k, log_mass=log_mass + 1e4, scale=scale)
    assert shifted == pytest.approx(once + 1e4, rel=tol.MEANFIELD_ROUNDING)
    assert np.all(at.effective_keys(q, k, log_mass=log_mass + 1e4) == np.inf)
    assert at.row_entropies(q, k, scale=1e3).min() >= 0.0
    assert at.effective_keys(q, k, scale=1e3).min() >= 1.0
    for identity in (at.row_entropies, at.effective_keys, at.frobenius_squared):
        with pytest.raises(ValueError, match=r"log_mass=-4\.5"):
            identity(q, k, log_mass=np.full(90, -4.5))
    with pytest.raises(ValueError, match="no digits of an entropy"):
        at.row_entropies(q, k, scale=1e200)


@pytest.mark.filterwarnings("error")
def test_huge_and_tiny_inputs_within_the_range_of_floats(case):
    _, x, v, _, _ = case
    steep = 250.0 / (x**2).sum(1).max()
    expected = at.attend_naive(x, x, v, scale=steep)[0]
    for size in (1e-290, 1e290):
        out = at.attend_symmetric(x, size * v, scale=steep)[0]
        assert out / size == pytest.approx(expected, rel=tol.MEANFIELD_SHARP_ROWS, abs=tol.MEANFIELD_SHARP_ROWS)
    expected = at.attend_naive(x, x, v)[0]
    scaled = at.attend(1e200 * x, 1e-100 * x, v, scale=1e-100, block=16.0, workers=2.0)[0]
    assert scaled == pytest.approx(expected, rel=tol.MEANFIELD_EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.ones((3, 5))}, r"q \(3, 5\)"),
        ({"v": np.ones((3, 4))}, r"v \(3, 4\)"),
        ({"k": np.full((90, 6), np.inf)}, "k contains inf"),
        ({"scale": np.nan}, "scale contains nan"),
        ({"log_mass": np.zeros(3)}, r"log_mass has shape \(3,\)"),
        ({"block": 0}, "block=0"),
        ({"workers": -1}, "workers=-1"),
        ({"dtype": np.float16}, "float16"),
        ({"block": 2.5}, "block=2.5"),
        ({"scale": 1e308}, r"scale=1e\+308"),
        ({"scale": 1e300, "dtype": np.float32}, "range of float32"),
        ({"q": np.full((3, 6), 1e30), "k": np.full((90, 6), 1e30), "dtype": np.float32}, "range of float32"),
        ({"q": np.full((3, 6), 1e200), "k": np.full((90, 6), 1e200)}, "range of float64"),
        ({"v": np.full((90, 4), 1e308)}, "range of float64"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_named(case, change, message):
    q, k, v, log_mass, scale = case
    arguments = {"q": q, "k": k, "v": v, "log_mass": log_mass, "scale": scale} | change
    with pytest.raises(ValueError, match=message):
        at.attend(**arguments)
