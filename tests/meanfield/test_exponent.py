"""The depth exponent, its interval, and the verdict on a power law."""

import numpy as np
import pytest

from meanfield.exponent import DRIFT, GROWTH, fit_power_law
from meanfield.params import RankParams
from meanfield.predict import predict_rank
from meanfield.recursion import Recursion
from tests import tolerances as tol


def chain(layers, recursion, start, per_frame=40):
    """Parameters of `layers` equal layers with derived energies."""
    return RankParams(
        name="chain",
        kappa=np.full((layers, 1), 2.0),
        head_dim=16,
        tokens_per_frame=per_frame,
        recursion=recursion,
        start=start,
        token_dim=np.full(layers, 64.0),
    )


def test_an_exact_power_law_is_found_exactly():
    depth = np.arange(1, 41.0)
    law = fit_power_law(np.stack([3.0 * depth**-1.5, depth**-2.0], -1), np.array([GROWTH, GROWTH / 2]))
    assert law.exponent == pytest.approx([1.5, 2.0], rel=tol.MEANFIELD_EXACT)
    assert law.high - law.low == pytest.approx(0.0, abs=tol.MEANFIELD_EXACT)
    assert law.reached.tolist() == [True, False]  # the second only for lack of growth


def test_the_confidence_interval_covers():
    """500 noisy power laws: the 95 % interval of the slope holds the true one as often as it says."""
    rng, layers, runs = np.random.default_rng(0), 24, 500
    depth = np.arange(1.0, layers + 1.0)[:, None]
    law = fit_power_law(depth**-1.2 * np.exp(0.05 * rng.standard_normal((layers, runs))), np.full(runs, 50.0))
    covered = np.mean((law.low <= 1.2) & (law.high >= 1.2))
    assert abs(covered - 0.95) < tol.SIGMAS * np.sqrt(0.95 * 0.05 / runs)
    false = np.mean(law.curvature_p < 0.05)
    assert abs(false - 0.05) < tol.SIGMAS * np.sqrt(0.95 * 0.05 / runs)


def test_local_slopes_follow_the_growth_of_the_norm():
    """g = g_0 (r_0/r)^2 with r = r_0 + a L has the local slope 2 (1 - r_0/r): the reason for the threshold."""
    depth = np.arange(1.0, 2001.0)
    law = fit_power_law((1.0 + 0.5 * depth) ** -2.0, 1001.0, last=0.01)
    middle = 1.0 + 0.5 * np.exp(np.log(depth[-20:]).mean())
    assert law.exponent == pytest.approx(2.0 * (1.0 - 1.0 / middle), rel=tol.MEANFIELD_GRID)


def test_a_bend_is_not_a_power_law():
    depth = np.arange(1.0, 101.0)
    law = fit_power_law(np.exp(-depth / 20.0), 100.0)
    assert abs(law.drift) > DRIFT * law.exponent and not law.reached and law.curvature_p < 0.01
    assert not fit_power_law(np.ones(40), 100.0).reached  # steady, but no decay


COHERENT = Recursion(0.0, 1.0)
BALANCED = Recursion(0.5, 0.5)


@pytest.mark.parametrize(
    ("layers", "recursion", "start", "tokens", "exponent"),
    [
        (400, COHERENT, (0.5, 0.0, 0.5), 40, 2.0),  # 2.1: one frame, V = I
        (400, COHERENT, (0.4, 0.3, 0.3), 4000, 2.0),
        (400, BALANCED, (0.5, 0.5, 0.0), 4000, 1.0),  # 2.2 E: between frames, equal gains
        (400, Recursion(1.0, 2.0), (0.5, 0.5, 0.0), 4000, 4 / 3),
        (400, Recursion(0.0, 1.0, coherence=0.0), (0.5, 0.0, 0.5), 40, 1.0),  # 2.2 D: random V
        (24, COHERENT, (0.5, 0.0, 0.5), 40, 2.0),  # 24 layers at full gain: r_L/r_0 = 25
    ],
)
def test_laws_that_are_reached(layers, recursion, start, tokens, exponent):
    found = predict_rank(layers, tokens, params=chain(layers, recursion, start))
    assert bool(found.power_law) and found.attrs["power_law"].startswith("a power law is reached")
    growth = float(found.norm_growth[-1])
    assert float(found.depth_exponent) == pytest.approx(exponent, rel=2.0 / growth + tol.MEANFIELD_EXPONENT)
    assert found.depth_exponent_low <= found.depth_exponent <= found.depth_exponent_high


@pytest.mark.parametrize("gain", [0.01, 0.1, 0.3])
def test_laws_that_are_not_reached(gain):
    """2.2 B: 24 layers below full gain are pre-asymptotic, r_L/r_0 = 1 + 24 gain."""
    found = predict_rank(24, 40, params=chain(24, Recursion(0.0, gain), (0.5, 0.0, 0.5)))
    growth = float(found.norm_growth[-1])
    assert growth < GROWTH and not bool(found.power_law)
    assert f"r_L/r_0 = {growth:.3g}" in found.attrs["power_law"]
    assert float(found.depth_exponent) < 2.0 * (1.0 - 0.5 / growth)  # the local slope is still below its limit, 2


def test_vggt_at_initialisation_reaches_none():
    for tokens in (1e6, np.array([1e3, 1e5])):
        found = predict_rank(24, tokens)
        assert not found.power_law.any() and found.attrs["power_law"].startswith("no power law is reached")
        assert "r_L/r_0 = 1 " in found.attrs["power_law"] and "spread g" in found.attrs["decaying_quantity"]


@pytest.mark.filterwarnings("error")
def test_no_values_have_no_power_law():
    assert fit_power_law(np.ones((10, 0)), np.ones(0)).sentence() == "no power law: no values"


def test_few_layers_have_no_exponent():
    found = predict_rank(3, np.array([100.0, 1000.0]))
    assert np.isnan(found.depth_exponent).all() and not found.power_law.any()
    assert "too few layers" in found.attrs["power_law"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_power_law(np.ones(9), 2.0, level=1.0), "level=1"),
        (lambda: fit_power_law(np.ones(9), 2.0, last=0.0), "last=0"),
        (lambda: fit_power_law(np.ones(9), -2.0), "growth=-2"),
        (lambda: fit_power_law(np.full(9, np.nan), 2.0), "nan"),
        (lambda: Recursion(0.1, 0.1, beta=np.inf), "beta contains inf"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
