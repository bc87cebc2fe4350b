"""Closed forms of section 3 of the theory against dense matrices and printed numbers."""

import numpy as np
import pytest

from meanfield import closed_forms as cf
from meanfield import ranks
from meanfield.finite_n import PopulationLaw
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax


@pytest.mark.parametrize(("tokens", "spread"), [(2, 0.3), (64, 0.01), (64, 0.7), (100, 1.0)])
def test_equiangular_token_ranks_are_exact(tokens, spread):
    x = equiangular_tokens(tokens, spread)
    closed = cf.equiangular_token_ranks(tokens, spread)
    for name, value in ranks.token_ranks(x).items():
        assert closed[name] == pytest.approx(float(value), rel=tol.MEANFIELD_EXACT)
    for value in ranks.token_ranks(x, centred=True).values():
        assert closed["centred"] == pytest.approx(float(value), rel=tol.MEANFIELD_EXACT)


def test_isotropic_tokens_in_fewer_dimensions():
    rng = np.random.default_rng(0)
    tokens, dim, spread = 3000, 64, 0.3
    x = np.sqrt(spread / dim) * rng.standard_normal((tokens, dim))
    x[:, 0] += np.sqrt(1.0 - spread)
    closed = cf.equiangular_token_ranks(tokens, spread, dim)
    for name, value in ranks.token_ranks(x).items():
        assert closed[name] == pytest.approx(float(value), rel=tol.MEANFIELD_ISOTROPIC)


@pytest.mark.parametrize(("tokens", "spread", "beta"), [(10, 0.5, 2.0), (50, 0.9, 6.0), (30, 0.1, 1.0)])
def test_equiangular_attention_ranks_are_exact(tokens, spread, beta):
    x = equiangular_tokens(tokens, spread)
    attention = softmax(beta * x @ x.T)
    measured = ranks.spectrum_ranks(np.linalg.svd(attention, compute_uv=False))
    closed = cf.equiangular_attention_ranks(tokens, spread, beta)
    for name, value in measured.items():
        assert closed[name] == pytest.approx(float(value), rel=tol.MEANFIELD_EXACT)


def test_gaussian_logits_against_a_dense_matrix():
    """N = 1000, s = .5, i.i.d. logits: one draw, whose fluctuations are a few parts in 1000."""
    rng = np.random.default_rng(0)
    attention = softmax(0.5 * rng.standard_normal((1000, 1000)))
    s = np.linalg.svd(attention, compute_uv=False)
    closed = cf.gaussian_logit_ranks(1000, 0.25)
    for name, value in ranks.spectrum_ranks(s).items():
        assert closed[name] == pytest.approx(float(value), rel=tol.MEANFIELD_IID_LOGITS)
    assert closed["entropy"] == pytest.approx(ranks.attention_entropy(attention), rel=tol.MEANFIELD_IID_LOGITS)
    assert closed["frobenius"] ** 2 == pytest.approx((s**2).sum(), rel=tol.MEANFIELD_IID_LOGITS)
    assert closed["second_singular_value"] == pytest.approx(s[1], rel=tol.MEANFIELD_EDGE)


def test_gaussian_logits_reproduce_the_printed_numbers():
    closed = cf.gaussian_logit_ranks(1000, np.array([0.25, 1.0]))
    assert closed["effective_rank"][0] == pytest.approx(661.9, abs=0.05)
    assert closed["effective_rank_energy"][0] == pytest.approx(6.999, abs=5e-4)
    assert closed["participation_ratio"] == pytest.approx([1.6485, 7.35], rel=1e-3)
    assert closed["entropy"] == pytest.approx(np.log(1000) - np.array([0.125, 0.5]), rel=tol.MEANFIELD_ROUNDING)
    assert closed["stable_rank"] == pytest.approx(np.exp([0.25, 1.0]), rel=tol.MEANFIELD_ROUNDING)
    assert (cf._QUARTER, cf._QUARTER_ENERGY) == pytest.approx((0.80504, np.exp(-0.5)), abs=5e-6)


def test_gaussian_logit_ranks_stay_within_the_number_of_tokens():
    n = np.array([2.0, 3.0, 10.0, 1e4, 1e12])
    closed = cf.gaussian_logit_ranks(n, 0.499 * np.log(n))
    for name in ("effective_rank", "effective_rank_energy", "stable_rank", "participation_ratio"):
        assert np.all((closed[name] >= 1.0) & (closed[name] <= n)), name
    assert np.all(closed["renyi2_entropy"] > 0.0)


@pytest.mark.filterwarnings("error")
def test_the_excess_of_the_smallest_spread_is_finite():
    assert cf.collapsed_token_excess(1e12, 1e-300)["effective_rank"] == pytest.approx(
        1e-144 * (1.0 + 156.0 * np.log(10.0)), rel=tol.MEANFIELD_ROUNDING
    )


def test_gaussian_queries_and_keys_against_their_population():
    """The closed forms equal the sums over the product of geometric sequences they summarise."""
    c = np.array([0.1, 0.02])
    closed = cf.gaussian_qk_ranks(c)
    root = np.sqrt((1 + 2 * c) / (1 - 2 * c))
    r = (root - 1) / (root + 1)
    lam = np.outer(*(((1 - r) / np.sqrt(1 - 2 * c))[:, None] * r[:, None] ** np.arange(60)))
    s = np.sqrt(np.sort(lam.ravel())[::-1])
    for name, value in ranks.spectrum_ranks(s).items():
        assert closed[name] == pytest.approx(float(value), rel=1e-9)
    assert closed["frobenius"] ** 2 == pytest.approx((s**2).sum(), rel=1e-12)
    assert closed["leading_singular_value"] == pytest.approx(s[0], rel=1e-12)


@pytest.mark.parametrize(("dim", "c", "leading", "stable"), [(8, 0.02, None, 1.178), (8, 0.1, 1.0204, 2.339)])
def test_gaussian_queries_and_keys_against_the_printed_svd(dim, c, leading, stable):
    closed = cf.gaussian_qk_ranks(np.full(dim, c))
    assert closed["stable_rank"] == pytest.approx(stable, rel=tol.MEANFIELD_GAUSSIAN_QK)
    if leading:
        assert closed["leading_singular_value"] == pytest.approx(leading, rel=tol.MEANFIELD_GAUSSIAN_QK)


def test_gaussian_queries_and_keys_in_two_dimensions_by_dense_svd():
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((2, 800, 2))
    s = np.linalg.svd(softmax(np.sqrt(0.1) * q @ k.T), compute_uv=False)
    closed = cf.gaussian_qk_ranks(np.full(2, 0.1))
    assert closed["stable_rank"] == pytest.approx(ranks.stable_rank(s), rel=tol.MEANFIELD_GAUSSIAN_SVD)


def test_a_query_mean_scales_all_singular_values_alike():
    """Dense SVD with and without a mean on the same sample, D = 4."""
    rng = np.random.default_rng(0)
    c, mean = np.full(4, 0.1), np.array([0.5, 0.0, 0.0, 0.0])
    u, y = np.sqrt(c) * rng.standard_normal((1000, 4)), rng.standard_normal((1000, 4))
    tilted = np.linalg.svd(softmax((u + mean) @ y.T), compute_uv=False)
    closed, plain = cf.gaussian_qk_ranks(c, mean), cf.gaussian_qk_ranks(c)
    assert closed["leading_singular_value"] == pytest.approx(tilted[0], rel=tol.MEANFIELD_SINK)
    factor = np.exp(0.25 / (2.0 * 0.8))
    assert closed["leading_singular_value"] / plain["leading_singular_value"] == pytest.approx(
        factor, rel=tol.MEANFIELD_ROUNDING
    )
    assert closed["stable_rank"] == pytest.approx(plain["stable_rank"], rel=tol.MEANFIELD_ROUNDING)
    assert ranks.stable_rank(tilted) == pytest.approx(closed["stable_rank"], rel=2.0 * tol.MEANFIELD_SINK)


def test_collapsed_limit_of_the_token_ranks():
    n, g = 64, 1e-5 / 64
    limit, exact = cf.collapsed_token_excess(n, g), cf.equiangular_token_ranks(n, g)
    for name, value in limit.items():
        assert value == pytest.approx(exact[name] - 1.0, rel=tol.MEANFIELD_COLLAPSED)


def test_participation_ratio_from_cosines_is_exact():
    x = np.random.default_rng(0).standard_normal((20, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (x @ x.T)[np.triu_indices(20, 1)]
    measured = ranks.token_ranks(x)["participation_ratio"]
    assert cf.token_participation_ratio(20, (cosines**2).mean()) == pytest.approx(
        float(measured), rel=tol.MEANFIELD_EXACT
    )


def test_contraction_and_the_law_agree_on_equiangular_attention():
    """N - 1 equal singular values delta: their features are not independent, yet the sums of squares must agree."""
    delta = float(cf.contraction(0.5, 2.0, 50))
    closed = cf.equiangular_attention_ranks(50, 0.5, 2.0)
    law = PopulationLaw(np.array([1.0, delta]), np.array([1.0, 49.0])).ranks(50)
    assert law["stable_rank"] == pytest.approx(closed["stable_rank"], rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cf.gaussian_qk_ranks([0.1, 0.5]), r"0\.5, outside"),
        (lambda: cf.gaussian_qk_ranks([-0.1]), r"-0\.1"),
        (lambda: cf.gaussian_logit_ranks(1e12, 2.0 * np.log(1e12)), r"55\.262 exceeds ln\(N\)/2"),
        (lambda: cf.gaussian_logit_ranks(2, 0.35), r"0\.35 exceeds ln\(N\)/2"),
        (lambda: cf.gaussian_logit_ranks(-3, 0.1), "N=-3"),
        (lambda: cf.gaussian_logit_ranks(100, np.inf), "inf"),
        (lambda: cf.equiangular_token_ranks(10, 1.5), r"spread=1\.5"),
        (lambda: cf.equiangular_token_ranks(10, 0.5, 0.0), "dim=0"),
        (lambda: cf.equiangular_attention_ranks(10, 0.5, -1.0), "beta=-1"),
        (lambda: cf.collapsed_token_excess(100, 0.01), "n g=1"),
        (lambda: cf.token_participation_ratio(10, 1.5), r"cosine=1\.5"),
    ],
)
def test_outside_the_domain_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
