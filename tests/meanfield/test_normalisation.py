"""Placements of the normalisation: layer maps against speeds, and the published initial velocities."""

import numpy as np
import pytest

from meanfield.attention import attend_naive
from meanfield.measure import unit
from meanfield.normalisation import NORMALISATIONS, MixLN, PostLN, PreLN, SqrtScaling, normalisation
from tests import tolerances as tol

EACH = pytest.mark.parametrize("placement", NORMALISATIONS, ids=lambda placement: placement.name)


@EACH
def test_a_layer_is_an_euler_step_of_the_flow(placement):
    """(map(alpha) - x)/alpha has the error alpha of a first-order quotient: the extrapolation to 0 is the velocity."""
    rng = np.random.default_rng(0)
    x, attended = rng.standard_normal((2, 20, 5))
    on_sphere = np.allclose(np.linalg.norm(placement.layer(x, attended, 0.1, 3.0), axis=1), 1.0)
    x = unit(x) if on_sphere else x
    for depth in (0.0, 3.0, 8.0):
        quotient = [(placement.layer(x, attended, a, depth) - x) / a for a in (2e-5, 1e-5)]
        velocity = placement.velocity(x, attended, 1.0, depth)
        assert 2.0 * quotient[1] - quotient[0] == pytest.approx(velocity, abs=tol.MEANFIELD_QUOTIENT)


@pytest.mark.parametrize("tokens", [5, 30])
@EACH
def test_initial_velocities_of_orthogonal_tokens(placement, tokens):
    """arXiv:2510.22026, theorem 4.1: gamma'(0) from gamma_0 = 0 with |x| = r_0."""
    beta, r = 1.7, 2.5
    theta = np.linalg.qr(np.random.default_rng(1).standard_normal((tokens, tokens)))[0]
    attended = attend_naive(theta, theta, theta, scale=beta)[0]
    velocity = placement.velocity(r * theta, attended, 1.0, 0.0)
    turning = (velocity - (velocity * theta).sum(1, keepdims=True) * theta) / r
    slope = turning[0] @ theta[1] + theta[0] @ turning[1]
    softmax = 2.0 / (np.exp(beta) + tokens - 1)
    normed = 2.0 / np.sqrt(np.exp(2.0 * beta) + tokens - 1)
    expected = {
        "post-ln": softmax,
        "mix-ln": softmax,
        "sqrt": softmax,
        "pre-ln": softmax / r,
        "peri-ln": normed / r,
        "ngpt": normed,
    }
    assert slope == pytest.approx(expected[placement.name], rel=tol.MEANFIELD_ROUNDING)


def test_mix_ln_changes_from_post_to_pre():
    rng = np.random.default_rng(2)
    x, attended = rng.standard_normal((2, 6, 4))
    mixed = MixLN(switch=2.0)
    for depth, same in ((1.0, PostLN()), (2.0, PreLN())):
        assert np.array_equal(mixed.layer(x, attended, 0.3, depth), same.layer(x, attended, 0.3, depth))
        assert np.array_equal(mixed.velocity(x, attended, 0.3, depth), same.velocity(x, attended, 0.3, depth))


def test_gain_is_a_factor_of_time():
    rng = np.random.default_rng(3)
    x, attended = rng.standard_normal((2, 6, 4))
    for placement in NORMALISATIONS:
        one, half = (placement.velocity(x, attended, gain, 2.0) for gain in (1.0, 0.5))
        assert half == pytest.approx(0.5 * one, rel=tol.MEANFIELD_ROUNDING)


def test_names_are_looked_up():
    assert all(normalisation(placement.name) == placement for placement in NORMALISATIONS)
    assert normalisation(MixLN(3.0)) == MixLN(3.0)
    with pytest.raises(ValueError, match=r"'layer' is unknown; choose one of post-ln, pre-ln, mix-ln, peri-ln, ngpt"):
        normalisation("layer")
    with pytest.raises(ValueError, match="switch=-1"):
        MixLN(-1.0)


@pytest.mark.filterwarnings("error")
@EACH
def test_velocities_without_a_direction_are_refused(placement):
    x = np.eye(3)
    with pytest.raises(ValueError, match="no direction"):
        placement.velocity(0.0 * x, x, 1.0, 0.0)
    if placement.name in ("peri-ln", "ngpt"):
        with pytest.raises(ValueError, match="attention output"):
            placement.velocity(x, 0.0 * x, 1.0, 0.0)
    else:
        assert np.all(placement.velocity(x, 0.0 * x, 1.0, 0.0) == 0.0)


def test_depths_are_not_negative():
    with pytest.raises(ValueError, match="depth=-5"):
        SqrtScaling().layer(np.eye(3), np.eye(3), 1.0, -5)
