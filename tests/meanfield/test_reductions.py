"""Errors of reduced attention: closed forms against Monte Carlo on explicit keys and values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanfield import reductions as red
from tests import tolerances as tol
from tests.meanfield.dense import softmax

TOKENS, DIM, DRAWS = 2000, 8, 800


class Query:
    """One query with Gaussian logits of deviation s and values correlated with them; its statistics."""

    def __init__(self, s):
        rng = np.random.default_rng(0)
        self.logits = s * rng.standard_normal(TOKENS)
        self.values = rng.standard_normal((TOKENS, DIM))
        self.values[:, 0] += 0.5 * self.logits
        self.weights = softmax(self.logits)
        self.out = self.weights @ self.values
        self.mean = self.values.mean(0)
        spread = ((self.values - self.out) ** 2).sum(-1)
        self.weighted_spread = (self.weights**2 @ spread).item()
        self.value_spread = (self.weights @ spread).item()
        self.value_variance = ((self.values - self.mean) ** 2).sum(-1).mean()
        self.mean_offset = ((self.mean - self.out) ** 2).sum()
        self.mean_ratio = np.exp(self.logits.mean()) / np.exp(self.logits).mean()

    def draws(self, kept):
        """Per draw: the output on the kept keys, the mean of the kept values, and the kept index."""
        rng = np.random.default_rng(1)
        for _ in range(DRAWS):
            index = rng.permutation(TOKENS)[:kept]
            yield softmax(self.logits[index]) @ self.values[index], self.values[index].mean(0), index


def _agrees(predicted, errors, order):
    """Within 4 standard errors of the mean plus the next order in 1/(kept keys in effect)."""
    errors = np.array(errors)
    assert abs(errors.mean() - predicted) < 4.0 * errors.std() / np.sqrt(errors.size) + order * predicted


@pytest.mark.parametrize(("s", "kept"), [(0.3, 250), (1.0, 500)])
def test_subsample_and_control_variate(s, kept):
    query = Query(s)
    fraction, order = kept / TOKENS, tol.MEANFIELD_NEXT_ORDER * np.exp(s**2) / kept
    plain, controlled = [], []
    for out, mean, _ in query.draws(kept):
        plain.append(((out - query.out) ** 2).sum())
        controlled.append(((out + query.mean - mean - query.out) ** 2).sum())
    _agrees(red.subsample_error(fraction, query.weighted_spread), plain, order)
    variate = red.control_variate_error(
        fraction, query.weighted_spread, query.value_spread, query.value_variance, TOKENS
    )
    _agrees(variate, controlled, order * np.exp(s**2) / np.expm1(s**2))


def test_control_variate_of_gaussian_logits_is_the_printed_form():
    """(1 - f)(e^{s^2} - 1) sigma_v^2/M for values independent of the logits."""
    s2, f = 0.4, 0.25
    spread = np.exp(s2) / TOKENS
    found = red.control_variate_error(f, spread, 1.0, 1.0, TOKENS)
    assert found == pytest.approx((1 - f) * np.expm1(s2) / (f * TOKENS), rel=1e-9)


@pytest.mark.parametrize("count_weight", [True, False])
def test_mean_fill(count_weight):
    query, kept = Query(1.0), 500
    errors = []
    for _, _, index in query.draws(kept):
        dropped = np.delete(np.arange(TOKENS), index)
        mass = dropped.size if count_weight else 1.0
        logits = np.append(query.logits[index], query.logits[dropped].mean() + np.log(mass))
        values = np.vstack([query.values[index], query.values[dropped].mean(0)])
        errors.append(((softmax(logits) @ values - query.out) ** 2).sum())
    weight = red.mean_fill_weight(kept / TOKENS, TOKENS, query.mean_ratio, count_weight=count_weight)
    mse = red.subsample_error(kept / TOKENS, query.weighted_spread)
    _agrees(red.mean_fill_error(weight, query.mean_offset, mse), errors, tol.MEANFIELD_MEAN_FILL)


def test_shrinkage_is_the_least_mean_fill_error():
    b2, mse = 0.3, 0.5
    weights = np.linspace(0.0, 1.0, 2001)
    errors = red.mean_fill_error(weights, b2, mse)
    assert weights[errors.argmin()] == pytest.approx(red.shrinkage_weight(b2, mse), abs=1e-3)
    assert errors.min() == pytest.approx(red.shrinkage_error(b2, mse), rel=1e-5)
    assert red.shrinkage_weight(0.0, 0.0) == 1.0


def test_shrinkage_by_monte_carlo():
    query, kept = Query(1.0), 250
    mse = red.subsample_error(kept / TOKENS, query.weighted_spread)
    weight = red.shrinkage_weight(query.mean_offset, mse)
    errors = [((weight * out + (1 - weight) * query.mean - query.out) ** 2).sum() for out, _, _ in query.draws(kept)]
    _agrees(red.shrinkage_error(query.mean_offset, mse), errors, tol.MEANFIELD_NEXT_ORDER * np.e / kept)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 3.0))
def test_frame_error_is_an_identity_and_below_the_bound(seed, s):
    rng = np.random.default_rng(seed)
    weights, values, own = softmax(s * rng.standard_normal(30)), rng.standard_normal((30, 4)), np.arange(30) < 10
    rho, out = weights[own].sum(), weights @ values
    o_own = weights[own] @ values[own] / rho
    o_rest = weights[~own] @ values[~own] / (1 - rho)
    exact = ((o_own - out) ** 2).sum()
    assert red.frame_error(rho, ((o_rest - o_own) ** 2).sum()) == pytest.approx(exact, rel=1e-8, abs=1e-14)
    bound = red.kept_mass_bound(rho, weights @ ((values - out) ** 2).sum(-1))
    assert exact <= bound * (1 + 1e-9)


def test_top_mass_of_gaussian_logits():
    logits = np.sort(1.5 * np.random.default_rng(0).standard_normal((400, 1000)), axis=-1)[:, ::-1]
    masses = softmax(logits)[:, :100].sum(-1)
    error = 4.0 * masses.std() / np.sqrt(400)
    assert abs(masses.mean() - red.top_mass(0.1, 1.5)) < error + tol.MEANFIELD_TOP_MASS


def test_own_and_other_sums_carry_to_more_exchangeable_frames():
    """Logits drawn per frame: statistics at 4 frames carried to 16, against 16 frames, means over 600 queries."""
    rng = np.random.default_rng(2)
    frames, per_frame, queries = 16, 40, 600
    logits = rng.standard_normal((queries, frames, per_frame))
    logits[:, 0] += 1.0
    few, many = (softmax(logits[:, :s].reshape(queries, -1)).reshape(queries, s, per_frame) for s in (4, 16))

    def statistics(weights):
        entropy = -weights * np.log(weights)
        return {
            "mass": weights[:, 0].sum(-1),
            "squares": [(weights[:, 0] ** 2).sum(-1), (weights[:, 1:] ** 2).sum((1, 2))],
            "entropy": [entropy[:, 0].sum(-1), entropy[:, 1:].sum((1, 2))],
        }

    at4, at16 = statistics(few), statistics(many)
    pairs = [
        (red.extrapolate_own_mass(at4["mass"], 4, 16), at16["mass"]),
        (red.extrapolate_squares(at4["mass"], *at4["squares"], 4, 16), sum(at16["squares"])),
        (red.extrapolate_entropy(at4["mass"], *at4["entropy"], 4, 16), sum(at16["entropy"])),
    ]
    for predicted, measured in pairs:
        difference = predicted - measured
        error = 4.0 * difference.std() / np.sqrt(queries)
        assert abs(difference.mean()) < error + tol.MEANFIELD_RATIO_BIAS * abs(measured.mean())
    same = red.extrapolate_entropy(at4["mass"], *at4["entropy"], 4, 4)
    assert same == pytest.approx(sum(at4["entropy"]), rel=tol.MEANFIELD_EXACT)


ROW, COLUMN = np.ones((1, 1)), np.ones((1, 1))


def test_functions_broadcast():
    assert red.subsample_error(np.array([0.25, 0.5])[:, None], np.ones(3)).shape == (2, 3)
    assert red.extrapolate_own_mass(np.full(3, 0.4), 4, np.array([8, 16])[:, None]).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: red.subsample_error(0.0, 1.0), "fraction=0"),
        (lambda: red.subsample_error(1.5, 1.0), r"fraction=1\.5"),
        (lambda: red.subsample_error(0.5, -1.0), "weighted_spread=-1"),
        (lambda: red.frame_error(1.2, 1.0), r"mass=1\.2"),
        (lambda: red.kept_mass_bound(0.0, 1.0), "kept_mass=0"),
        (lambda: red.extrapolate_own_mass(0.5, 1, 4), "two frames"),
        (lambda: red.mean_fill_weight(0.5, 100, 2.0), "mean_ratio=2"),
        (lambda: red.gaussian_subsample_error(0.5, 100, 1000.0), "logit_variance=1000"),
        (lambda: red.top_error(1e-300, 1.0, 1.0, 1.0, 0.1, 100), "at least one key"),
        (lambda: red.softmax_displacement(ROW, ROW * np.nan, COLUMN, ROW), "change contains nan"),
        (lambda: red.merge_displacement(ROW, ROW[..., None], ROW, COLUMN, ROW * np.nan), "outputs contains nan"),
        (lambda: red.control_variate_error(0.5, np.nan, 1.0, 1.0, 100), "nan"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
