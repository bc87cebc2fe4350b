"""The three-mode recursion: exponents of theory 2.2, exact steps, exchangeable frames, and its fit."""

import numpy as np
import pytest

from meanfield import recursion as rec
from meanfield.closed_forms import contraction
from tests import tolerances as tol

MANY = 1e12


def _shares(gain_frame, gain_global, coherence, layers=2000):
    parameters = rec.Recursion(gain_frame, gain_global, coherence)
    energies = rec.rollout(parameters, [0.1, 0.5, 0.4], layers, MANY, MANY)[1:]
    return energies / energies.sum(-1, keepdims=True)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)])
def test_coherent_alternating_blocks_decay_with_the_exponents_of_2_2_e(gains):
    """Between frames 2 a_g/(a_f + a_g): exactly 1 at equal gains. Within frames 2."""
    shares = _shares(*gains, coherence=1.0)
    between, error = rec.depth_exponent(shares[:, 1], last=0.3)
    within, _ = rec.depth_exponent(shares[:, 2], last=0.3)
    assert between == pytest.approx(2.0 * gains[1] / sum(gains), abs=tol.MEANFIELD_EXPONENT)
    assert within == pytest.approx(2.0, abs=tol.MEANFIELD_EXPONENT)
    assert error < tol.MEANFIELD_EXPONENT


def test_random_values_decay_with_half_the_exponents():
    """2.2 D: random V gives 1 within frames; between frames a_g^2/(a_f^2 + a_g^2)."""
    shares = _shares(1.0, 1.0, coherence=0.0)
    assert rec.depth_exponent(shares[:, 2], last=0.3)[0] == pytest.approx(1.0, abs=2 * tol.MEANFIELD_EXPONENT)
    assert rec.depth_exponent(shares[:, 1], last=0.3)[0] == pytest.approx(0.5, abs=2 * tol.MEANFIELD_EXPONENT)


def test_fresh_noise_gives_one_over_depth_within_frames():
    """2.2 C: with fresh token noise and coherent V the variance ratio is (sigma^2/alpha^2)/L."""
    parameters = rec.Recursion(0.0, 1.0, noise_token=0.5)
    energies = rec.rollout(parameters, [0.5, 0.0, 0.5], 3000, MANY, MANY)[1:]
    g = energies[:, 2] / energies.sum(-1)
    assert rec.depth_exponent(g, last=0.3)[0] == pytest.approx(1.0, abs=tol.MEANFIELD_EXPONENT)
    assert g[-1] * 3000 == pytest.approx(0.5, rel=tol.MEANFIELD_NOISE_FLOOR)


def test_one_layer_against_equiangular_particles():
    """2.2 A, exact: one global Pre-LN block on N equiangular tokens (one token per frame), V = I, logits beta cos."""
    rng = np.random.default_rng(0)
    tokens, spread, beta, alpha, r = 40, 0.6, 3.0, 0.7, 1.3
    gram = spread * np.eye(tokens) + (1.0 - spread)
    x = r * np.linalg.cholesky(gram) @ np.linalg.qr(rng.standard_normal((tokens, tokens)))[0]
    weights = np.exp(beta * x @ x.T / r**2)
    x_next = x + alpha * (weights / weights.sum(-1, keepdims=True)) @ x / r
    between = [((y - y.mean(0)) ** 2).sum(-1).mean() for y in (x, x_next)]
    mean = [(y.mean(0) ** 2).sum() for y in (x, x_next)]
    parameters = rec.Recursion(0.0, alpha, beta=beta)
    start = rec.population_energies([mean[0], between[0], 0.0], tokens, 2.0)
    state = rec.rollout(parameters, start, 1, tokens, 1.0)
    assert state[0] == pytest.approx([mean[0], between[0], 0.0], rel=tol.MEANFIELD_EXACT)
    assert state[1] == pytest.approx([mean[1], between[1], 0.0], rel=tol.MEANFIELD_EXACT)
    assert rec.spread(state[0], tokens) == pytest.approx(spread, rel=tol.MEANFIELD_EXACT)
    assert contraction(spread, beta, tokens) < 1.0


def test_sample_energies_of_exchangeable_frames():
    """Hierarchical Gaussian tokens: expected energies against 400 draws, 4 standard errors; and the inverse."""
    rng = np.random.default_rng(1)
    population, frames, per_frame, dim = np.array([0.3, 0.5, 0.8]), 3, 4, 50
    draws = []
    for _ in range(400):
        mean, frame, token = (
            np.sqrt(energy / dim) * rng.standard_normal((*shape, dim))
            for energy, shape in zip(population, [(1, 1), (frames, 1), (frames, per_frame)], strict=True)
        )
        x = mean + frame + token
        centre, of_frame = x.mean((0, 1)), x.mean(1)
        within = ((x - of_frame[:, None]) ** 2).sum(-1).mean()
        draws.append([(centre**2).sum(), ((of_frame - centre) ** 2).sum(-1).mean(), within])
    expected = rec.sample_energies(population, frames, per_frame)
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(np.mean(draws, axis=0) - expected) < 4.0 * error)
    assert rec.population_energies(expected, frames, per_frame) == pytest.approx(population, rel=tol.MEANFIELD_EXACT)


def test_fit_recovers_the_recursion_and_carries_it_to_more_frames():
    true = rec.Recursion(0.3, 0.2, 0.5, 0.01, 0.02, 0.05, gain_growth=0.03)
    start = [0.3, 0.2, 0.5]
    fitted, residual = rec.fit_recursion(rec.rollout(true, start, 10, 4, 68), 4, 68)
    assert residual < tol.MEANFIELD_FIT
    there = rec.rollout(fitted, start, 10, 32, 68)
    assert there == pytest.approx(rec.rollout(true, start, 10, 32, 68), rel=tol.MEANFIELD_FIT)


def test_depth_exponent_of_an_exact_power_and_of_a_noisy_one():
    depth = np.arange(1, 41)
    exponent, error = rec.depth_exponent(3.0 * depth**-1.3)
    assert exponent == pytest.approx(1.3, rel=tol.MEANFIELD_ROUNDING) and error < 1e-12
    rng = np.random.default_rng(0)
    noisy = 3.0 * depth[:, None] ** -1.3 * np.exp(0.05 * rng.standard_normal((40, 200)))
    exponents, errors = rec.depth_exponent(noisy)
    assert exponents.shape == (200,)
    assert np.std(exponents) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=tol.MEANFIELD_SPREAD_OF_200)
    assert np.isnan(rec.depth_exponent(np.zeros(5))[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rec.Recursion(-1.0, 1.0), "gain_frame=-1"),
        (lambda: rec.Recursion(1.0, 1.0, coherence=1.5), r"coherence=1\.5"),
        (lambda: rec.Recursion(1.0, np.nan), "nan"),
        (lambda: rec.rollout(rec.Recursion(1, 1), [1, 1], 3, 2, 2), "last axis"),
        (lambda: rec.population_energies([1, 1, 1], 1, 10), "two or more"),
        (lambda: rec.fit_recursion(np.ones((3, 3)), 4, 68), "at least 4 layers"),
        (lambda: rec.depth_exponent([1.0, 0.5]), "at least 3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
