"""What reductions do to the rate of collapse: closed forms against equiangular particles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanfield.closed_forms import contraction
from meanfield.reductions import collapse
from meanfield.reductions.redundancy import redundant_spread
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax

N, SPREAD, BETA = 24, 0.7, 3.0


def rate(attention, values, spread):
    """kappa of unit tokens at equal cosines, by the derivative of their mean cosine along x' = A values."""
    tokens = equiangular_tokens(len(attention), spread)
    step = 1e-6
    moved = [tokens + sign * step * (attention @ values) for sign in (1.0, -1.0)]
    slope = (mean_cosine(moved[0]) - mean_cosine(moved[1])) / (2.0 * step)
    gamma, count = 1.0 - spread, len(tokens)
    return slope * count / (2.0 * spread * (1.0 + (count - 1.0) * gamma))


def mean_cosine(tokens):
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    count = len(unit)
    return ((unit.sum(0) ** 2).sum() - count) / (count * (count - 1.0))


def kept_rate(tokens, kept):
    """Attention of all tokens to the kept keys."""
    return rate(softmax(BETA * tokens @ tokens[kept].T), tokens[kept], SPREAD)


def test_full_attention():
    tokens = equiangular_tokens(N, SPREAD)
    found = rate(softmax(BETA * tokens @ tokens.T), tokens, SPREAD)
    assert found == pytest.approx(collapse.full(N, SPREAD, BETA), rel=tol.REDUCTION_DERIVATIVE)
    assert collapse.full(N, SPREAD, BETA) == pytest.approx(1.0 - contraction(SPREAD, BETA, N), rel=tol.MEANFIELD_EXACT)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_merging_distinct_tokens(group):
    tokens = equiangular_tokens(N, SPREAD)
    keys = tokens.reshape(N // group, group, N).mean(1)
    found = rate(softmax(BETA * tokens @ keys.T), keys, SPREAD)
    assert found == pytest.approx(collapse.merge(N, SPREAD, BETA, group), rel=tol.REDUCTION_DERIVATIVE)


def test_subsampled_keys_on_average():
    """By symmetry of equiangular tokens every subset gives the same rate."""
    tokens = equiangular_tokens(N, SPREAD)
    found = kept_rate(tokens, np.arange(0, N, 3))
    assert found == pytest.approx(collapse.subsample(N, SPREAD, BETA, 1 / 3), rel=tol.REDUCTION_DERIVATIVE)


def test_mean_filled_keys():
    tokens = equiangular_tokens(N, SPREAD)
    keys = np.vstack([tokens[:6], tokens[6:].mean(0)])
    mass = np.log(np.r_[np.ones(6), N - 6])
    found = rate(softmax(BETA * tokens @ keys.T + mass), keys, SPREAD)
    assert found == pytest.approx(collapse.mean_fill(N, SPREAD, BETA, 0.25), rel=tol.REDUCTION_DERIVATIVE)


def test_largest_logits():
    """Ties are cut at random: whatever the other kept keys are, only the own weight enters the rate."""
    tokens, rng = equiangular_tokens(N, SPREAD), np.random.default_rng(0)
    mask = np.eye(N, dtype=bool)
    for i in range(N):
        mask[i, rng.permutation(np.delete(np.arange(N), i))[:7]] = True
    attention = softmax(np.where(mask, BETA * tokens @ tokens.T, -np.inf))
    found = rate(attention, tokens, SPREAD)
    assert found == pytest.approx(collapse.top(N, SPREAD, BETA, 8 / N), rel=tol.REDUCTION_DERIVATIVE)


def test_frame_attention():
    tokens, frame = equiangular_tokens(N, SPREAD), np.arange(N) // 8
    attention = softmax(np.where(frame[:, None] == frame, BETA * tokens @ tokens.T, -np.inf))
    found = rate(attention, tokens, SPREAD)
    assert found == pytest.approx(collapse.frame_attention(N, SPREAD, BETA, 3), rel=tol.REDUCTION_DERIVATIVE)


def test_redundant_directions():
    copies = np.array([1, 1, 5, 2, 1, 9])
    tokens = equiangular_tokens(6, SPREAD)
    found = rate(softmax(BETA * tokens @ tokens.T + np.log(copies)), tokens, SPREAD)
    assert found == pytest.approx(collapse.redundant(copies, SPREAD, BETA), rel=tol.REDUCTION_DERIVATIVE)


def test_two_clusters_are_the_printed_numbers():
    """beta = 2, g = .8: .804 at p = .95, .336 without redundancy; and N/m at beta = 8, g = .9."""
    assert collapse.redundant([0.95, 0.05], 0.8, 2.0) == pytest.approx(0.80373, abs=tol.REDUCTION_PRINTED)
    assert collapse.redundant([1, 1], 0.8, 2.0) == pytest.approx(2 / (1 + np.exp(1.6)), rel=tol.MEANFIELD_ROUNDING)
    kappas = collapse.full(np.array([1000, 250, 62]), 0.9, 8.0)
    assert kappas == pytest.approx([0.4276, 0.1574, 0.0443], abs=tol.REDUCTION_PRINTED * 10)


def test_merging_distinct_tokens_in_depth():
    """40 layers of gain .1, N = 64: .396 unmerged, .099/.078/.073 merged; the three-mode recursion is exact."""
    printed = {1: 0.3961, 2: 0.0994, 4: 0.0778, 8: 0.0735}
    for group, value in printed.items():
        x = equiangular_tokens(64, 0.9)
        for _ in range(40):
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            keys = unit.reshape(64 // group, group, 64).mean(1)
            x = x + 0.1 * softmax(5.0 * unit @ keys.T) @ keys
        predicted = collapse.merged_spread(64, 0.9, 5.0, group, gain=0.1, layers=40)
        assert 1.0 - mean_cosine(x) == pytest.approx(predicted[-1], rel=tol.MEANFIELD_EXACT)
        assert predicted[-1] == pytest.approx(value, abs=tol.REDUCTION_PRINTED * 10)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=8), st.floats(0.0, 1.0), st.floats(0.0, 20.0), st.integers(2, 6)
)
def test_signs(copies, spread, beta, group):
    """Redundancy never slows, merging distinct tokens and subsampling never slow, top-k and frames never accelerate."""
    n, slack = 24, 1e-12
    single = collapse.redundant(np.ones(len(copies)), spread, beta)
    assert collapse.redundant(copies, spread, beta) >= single - slack
    exact = collapse.full(n, spread, beta)
    for faster in (
        collapse.merge(n, spread, beta, group),
        collapse.subsample(n, spread, beta, 1.0 / group),
        collapse.mean_fill(n, spread, beta, 1.0 / group),
    ):
        assert faster >= exact - slack
    for slower in (
        collapse.top(n, spread, beta, 1.0 / group),
        collapse.frame_attention(n, spread, beta, group),
        collapse.full(n / group, spread, beta) if group < n else exact,
    ):
        assert slower <= exact + slack


@pytest.mark.parametrize(("copies", "group"), [(4, 1), (4, 4), (16, 2)])
def test_merging_change_by_particles(copies, group):
    """Copies of one direction to a single key, single tokens to mean keys: kappa over the distinct directions."""
    singles = 16
    tokens = equiangular_tokens(singles + 1, SPREAD)
    before = rate(softmax(BETA * tokens @ tokens.T + np.log(np.r_[copies, np.ones(singles)])), tokens, SPREAD)
    keys = np.vstack([tokens[:1], tokens[1:].reshape(-1, group, singles + 1).mean(1)])
    after = rate(softmax(BETA * tokens @ keys.T), keys, SPREAD)
    found = collapse.merging_change(singles + copies, SPREAD, BETA, copies / (singles + copies), group)
    assert found == pytest.approx(after - before, abs=tol.REDUCTION_DERIVATIVE)
    assert collapse.merging_accelerates(singles + copies, SPREAD, BETA, copies / (singles + copies), group) == (
        after > before
    )


def test_critical_redundancy_is_the_root():
    p = collapse.critical_redundancy(64, 0.9, 3.0, 2)
    assert 1 / 64 < p < 1.0
    assert collapse.merging_change(64, 0.9, 3.0, p, 2) == pytest.approx(0.0, abs=tol.MEANFIELD_EXACT)
    assert collapse.merging_accelerates(64, 0.9, 3.0, 0.9 * p, 2)
    assert not collapse.merging_accelerates(64, 0.9, 3.0, 1.1 * p, 2)
    assert collapse.critical_redundancy(256, 0.9, 5.0, 1) == 1 / 256
    assert collapse.critical_redundancy(32, 0.9, 9.0, 8) == 1.0


def test_half_rate():
    x = collapse.half_rate_logit(500.0)
    assert collapse.full(500.0, 1.0, x) == pytest.approx(0.5, rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collapse.full(-3, 0.5, 1.0), "N=-3"),
        (lambda: collapse.full(10, 0.5, np.inf), "beta contains inf"),
        (lambda: collapse.merge(4, 0.5, 1.0, 8), "group=8 exceeds N=4"),
        (lambda: collapse.merge(4, 0.5, 1.0, 0), "group=0"),
        (lambda: collapse.frame_attention(4, 0.5, 1.0, 8), "frames=8 exceeds N=4"),
        (lambda: collapse.redundant([3], 0.5, 1.0), "two directions"),
        (lambda: collapse.redundant([3, np.nan], 0.5, 1.0), "copies contains nan"),
        (lambda: collapse.merging_change(20, 0.5, 1.0, 0.99, 2), r"redundancy=0\.99"),
        (lambda: collapse.merged_spread(64, 0.5, 1.0, 7, gain=0.1, layers=2), "group=7 does not split N=64"),
        (lambda: collapse.subsample(24, 0.7, 3.0, 1e-9), "less than one token"),
        (lambda: collapse.top(24, 0.7, 3.0, 0.04), "less than one token"),
        (lambda: collapse.mean_fill(24, 0.7, 3.0, [0.5, 0.01]), r"fraction=0\.01"),
        (lambda: collapse.merging_change(1e12, 0.5, 1.0, 1.0, 2), "redundancy=1"),
        (lambda: collapse.critical_redundancy(0, 0.5, 1.0, 2), "N=0"),
        (lambda: collapse.critical_redundancy(64, 0.5, 1.0, 64), "group=64"),
        (lambda: collapse.merged_spread(64, 0.5, 1.0, 4, gain=0.1, layers=-5), "layers=-5"),
        (lambda: collapse.merged_spread(64, 0.5, 1.0, 1.5, gain=0.1, layers=2), r"group=1\.5"),
        (lambda: redundant_spread(12, 9, 0.5, 1.0, None, gain=0.1, layers=-3), "layers=-3"),
        (lambda: redundant_spread(12, 9, 0.5, 1.0, None, gain=0.1, layers=2.9), r"layers=2\.9"),
        (lambda: redundant_spread(12, np.nan, 0.5, 1.0, 4, gain=0.1, layers=2), "copies contains nan"),
        (lambda: redundant_spread(12, -2, 0.5, 1.0, 4, gain=0.1, layers=2), "copies=-2"),
        (lambda: redundant_spread(12, 9, 0.5, 1.0, 1.5, gain=0.1, layers=2), r"group=1\.5"),
        (lambda: collapse.collapse_rate(1.5, 8), r"other_weight=1\.5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("group", [None, 1, 4])
def test_redundant_tokens_in_depth(group):
    """Five inner products against 13 directions, one of them with 9 copies: the same to rounding."""
    singles, copies, layers = 12, 9, 12
    x = equiangular_tokens(singles + 1, SPREAD)
    for _ in range(layers):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        keys, mass = unit, np.r_[np.ones(singles), copies]
        if group is not None:
            keys = np.vstack([unit[:singles].reshape(-1, group, singles + 1).mean(1), unit[-1:]])
            mass = np.ones(len(keys))
        x = x + 0.2 * softmax(BETA * unit @ keys.T + np.log(mass)) @ keys
    found = redundant_spread(singles, copies, SPREAD, BETA, group, gain=0.2, layers=layers)
    assert found[0] == pytest.approx(SPREAD, rel=tol.MEANFIELD_ROUNDING)
    assert found[-1] == pytest.approx(1.0 - mean_cosine(x), rel=tol.MEANFIELD_EXACT)
