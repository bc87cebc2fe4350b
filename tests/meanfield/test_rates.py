"""Every cell of the table in docs/theory/rates.md: the depth law of each quantity under each model.

A cell "ln(L)^q / L^p" is checked by the local slope of ln(quantity/ln(L)^q) between two late depths, a cell
"L^q e^{-pL}" by that of ln(quantity/L^q) in L. All quantities are functions of the spread g at fixed N, d >= N.
"""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from meanfield.closed_forms import contraction, equiangular_token_ranks
from meanfield.equiangular import Equiangular, depth_regime, layers, trajectory, wasserstein_to_dirac
from meanfield.gaussian_closure import gaussian_variance
from meanfield.recursion import noisy_spread, random_value_norm
from tests import tolerances as tol

TOKENS, BETA = 8, 1.0
WITH_LOGARITHM = ("erank of energies - 1", "spectral entropy", "erank - 1")


def _entropy(ratio, tokens):
    """Entropy of the weights 1 (once) and `ratio` (N - 1 times), without cancellation at small ratios."""
    rest = (tokens - 1) * ratio
    return np.log1p(rest) - rest * np.log(ratio) / (1 + rest)


def _quantities(g, tokens=TOKENS):
    ratio = g / (tokens - (tokens - 1) * g)
    return {
        "W2": wasserstein_to_dirac(g, tokens),
        "1 - gamma": g,
        "SR - 1": (tokens - 1) * ratio,
        "PR - 1": (tokens - 1) * g * (2 - g) / (1 + (tokens - 1) * (1 - g) ** 2),
        "erank of energies - 1": np.expm1(_entropy(ratio, tokens)),
        "spectral entropy": _entropy(ratio, tokens),
        "erank - 1": np.expm1(_entropy(np.sqrt(ratio), tokens)),
        "sigma_2(A)": contraction(g, BETA, tokens),
    }


def test_quantities_are_the_closed_forms_less_one():
    closed, found = equiangular_token_ranks(TOKENS, 0.2), _quantities(0.2)
    pairs = {
        "SR - 1": "stable_rank",
        "PR - 1": "participation_ratio",
        "erank of energies - 1": "effective_rank_energy",
        "erank - 1": "effective_rank",
    }
    for name, rank in pairs.items():
        assert found[name] == pytest.approx(closed[rank] - 1, rel=tol.MEANFIELD_EXACT)


def _entropy_deficit(g):
    """ln N - H of a row of attention, as the sum of A ln(N A)."""
    delta = contraction(g, BETA, TOKENS)
    own, other = (TOKENS - 1) * delta / TOKENS, -delta / TOKENS
    return ((1 / TOKENS + own) * np.log1p(TOKENS * own)) + (TOKENS - 1) * (1 / TOKENS + other) * np.log1p(
        TOKENS * other
    )


def _alternating(depths):
    """Between-frame share of the mode equations at equal gains, beta = 0, small gains, no within-frame variance."""

    def rates(_l, state):
        r = np.sqrt(np.exp(state).sum())
        return [4.0 / r, 2.0 / r]

    span = (0.0, depths[-1])
    energies = np.exp(solve_ivp(rates, span, np.log([0.5, 0.5]), t_eval=depths, rtol=1e-10, atol=1e-12).y)
    return TOKENS / (TOKENS - 1) * energies[1] / energies.sum(0)


def _random(depths):
    start = 0.5 * (TOKENS - 1) / TOKENS
    return np.array([0.5 / random_value_norm(depth, 1.0, start, 1.0) for depth in depths])


POWER_LAWS = {
    "Pre-LN, coherent V": (2.0, lambda depths: trajectory(Equiangular(TOKENS, BETA), depths)[0]),
    "Pre-LN, random V": (1.0, _random),
    "alternating, equal gains": (1.0, _alternating),
    "coherent V and fresh noise": (1.0, lambda depths: noisy_spread(depths, 1.0, 0.5, 1.0)),
}


@pytest.mark.parametrize("model", POWER_LAWS)
def test_power_laws(model):
    exponent, spread = POWER_LAWS[model]
    depths = np.array([1e11, 1e12])
    scale = np.log(depths[1] / depths[0])
    found = _quantities(spread(depths))
    for name, values in found.items():
        corrected = values / np.log(depths) if name in WITH_LOGARITHM else values
        expected = exponent / 2 if name in ("W2", "erank - 1") else exponent
        slope = -np.log(corrected[1] / corrected[0]) / scale
        assert slope == pytest.approx(expected, abs=tol.RATES), name
    early = np.array([100.0, 200.0])
    deficit = _entropy_deficit(spread(early))
    assert -np.log2(deficit[1] / deficit[0]) == pytest.approx(2 * exponent, abs=tol.RATES_EARLY)


def test_post_ln_is_exponential():
    """e^{-2t} in the variance, with a factor t in the effective ranks; whole layers at gain alpha: (1 + alpha)^{-2}."""
    times = np.array([100.0, 110.0])
    g, _ = trajectory(Equiangular(TOKENS, BETA, normalisation="post"), times)
    for name, values in _quantities(g).items():
        expected = 1.0 if name in ("W2", "erank - 1") else 2.0
        slope = -np.diff(np.log(values / times if name in WITH_LOGARITHM else values))[0] / 10.0
        assert slope == pytest.approx(expected, abs=tol.RATES), name
    g, _ = trajectory(Equiangular(TOKENS, BETA, normalisation="post"), [3.0, 3.5])
    assert -np.diff(np.log(_entropy_deficit(g)))[0] / 0.5 == pytest.approx(4.0, abs=tol.RATES_EARLY)
    discrete, _ = layers(Equiangular(TOKENS, BETA, normalisation="post", gain=0.5), 40)
    assert np.log(discrete[39] / discrete[40]) == pytest.approx(2.0 * np.log(1.5), abs=tol.RATES)


def test_repulsive_gaussian_tokens_without_layer_norm():
    """V = -I: variance O(1/t), hence W2 to the Dirac at the mean, its square root, O(t^{-1/2})."""
    late, later = gaussian_variance(1.0, -BETA, np.array([1e11, 1e12]))
    assert np.log10(late / later) == pytest.approx(1.0, abs=tol.RATES)


def test_layer_scale_reaches_no_law():
    exponent, reached = depth_regime(Equiangular(1e4, 2.0, 0.7, gain=0.01), 24)
    assert not reached and exponent < 0.5
    assert depth_regime(Equiangular(1e4, 2.0, 0.7, gain=1.0), 24)[1]


def test_the_roy_vetterli_rank_is_late():
    """Its law needs L >> sqrt(C N): with 1000 tokens the slope at L = 100 is far from its final 1."""
    slopes = []
    for depths in (np.array([100.0, 110.0]), np.array([1e11, 1e12])):
        rank = _quantities(trajectory(Equiangular(1000, BETA), depths)[0], 1000)["erank - 1"]
        slopes.append(-np.diff(np.log(rank / np.log(depths)))[0] / np.diff(np.log(depths))[0])
    assert abs(slopes[0] - 1.0) > 0.5 and abs(slopes[1] - 1.0) < tol.RATES
