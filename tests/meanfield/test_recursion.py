"""The three-mode recursion: exponents of theory 2.2, exact steps, exchangeable frames, and its fit."""

import numpy as np
import pytest

from meanfield import recursion as rec
from meanfield.closed_forms import contraction
from meanfield.exponent import fit_power_law
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens

MANY = 1e12


def _shares(gain_frame, gain_global, coherence, layers=2000):
    parameters = rec.Recursion(gain_frame, gain_global, coherence)
    energies = rec.rollout(parameters, [0.1, 0.5, 0.4], layers, MANY, MANY)[1:]
    return energies / energies.sum(-1, keepdims=True)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)])
def test_coherent_alternating_blocks_decay_with_the_exponents_of_2_2_e(gains):
    """Between frames 2 a_g/(a_f + a_g): exactly 1 at equal gains. Within frames 2."""
    shares = _shares(*gains, coherence=1.0)
    fit = fit_power_law(shares[:, 1:], MANY, last=0.3)
    assert fit.exponent == pytest.approx([2.0 * gains[1] / sum(gains), 2.0], abs=tol.MEANFIELD_EXPONENT)
    assert np.all(fit.se < tol.MEANFIELD_EXPONENT)


def test_random_values_decay_with_half_the_exponents():
    """2.2 D: random V gives 1 within frames; between frames a_g^2/(a_f^2 + a_g^2)."""
    shares = _shares(1.0, 1.0, coherence=0.0)
    exponents = fit_power_law(shares[:, 1:], MANY, last=0.3).exponent
    assert exponents == pytest.approx([0.5, 1.0], abs=2 * tol.MEANFIELD_EXPONENT)


def test_fresh_noise_gives_one_over_depth_within_frames():
    """2.2 C: with fresh token noise and coherent V the variance ratio is (sigma^2/alpha^2)/L."""
    parameters = rec.Recursion(0.0, 1.0, noise_token=0.5)
    energies = rec.rollout(parameters, [0.5, 0.0, 0.5], 3000, MANY, MANY)[1:]
    g = energies[:, 2] / energies.sum(-1)
    assert fit_power_law(g, MANY, last=0.3).exponent == pytest.approx(1.0, abs=tol.MEANFIELD_EXPONENT)
    assert g[-1] * 3000 == pytest.approx(0.5, rel=tol.MEANFIELD_NOISE_FLOOR)


@pytest.mark.parametrize("coherence", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gains", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0)])
def test_asymptotic_exponents_are_those_of_the_rollout(gains, coherence):
    """One late layer: a large mean at the start leaves the transient out, and ln r^2 counts the depth."""
    recursion = rec.Recursion(*gains, coherence)
    start = np.array([1e6, 1.0, 1.0])
    end = rec.rollout(recursion, start, 1, MANY, MANY)[1]
    growth = np.log(end.sum() / start.sum())
    # r^2 grows as L^2 (coherent) or L (random), so that d ln L = growth/2 or growth.
    local = (1.0 - np.log(end[1:] / start[1:]) / growth) * (2.0 if coherence else 1.0)
    assert local == pytest.approx(rec.asymptotic_exponents(recursion), abs=tol.DYNAMICS_LATE)


def test_partial_coherence_passes_from_one_exponent_to_the_other():
    """V = c I + sqrt(1 - c^2) G, local exponents listed in docs/theory/dynamics.md, 2.2 D, at L = 80, 160, 320."""
    tokens = 24
    for coherence, printed in [(0.0, (1.02, 1.013, 1.008)), (0.2, (1.623, 1.718, 1.801)), (0.5, (1.879, 1.922, 1.952))]:
        parameters = rec.Recursion(0.0, 1.0, coherence, beta=1.0)
        start = rec.population_energies([(1 + 23 * 0.5) / 24, 23 / 24 * 0.5, 0.0], tokens, 2.0)
        energies = rec.rollout(parameters, start, 320, tokens, 1.0)
        g = rec.spread(energies, tokens)[[40, 80, 160, 320]]
        assert -np.diff(np.log2(g)) == pytest.approx(printed, abs=1e-3)


def test_random_values_against_particles():
    """Mean energies after 12 layers x <- x + alpha A V, V Gaussian, over 300 draws: within 4 standard errors."""
    rng = np.random.default_rng(3)
    tokens, dim, alpha, spread = 6, 24, 0.8, 0.5
    start = np.zeros((tokens, dim))
    start[:, :tokens] = equiangular_tokens(tokens, spread)
    drawn = []
    for _ in range(300):
        x = start
        for _ in range(12):
            theta = x / np.linalg.norm(x, axis=1, keepdims=True)
            value = rng.standard_normal((dim, dim)) / np.sqrt(dim)
            x = x + alpha * theta.mean(0) @ value
        drawn.append([(x.mean(0) ** 2).sum(), ((x - x.mean(0)) ** 2).sum(1).mean()])
    population = rec.population_energies([(1 + 5 * 0.5) / 6, 5 / 6 * 0.5, 0.0], tokens, 2.0)
    expected = rec.rollout(rec.Recursion(0.0, alpha, 0.0), population, 12, tokens, 1.0)[-1]
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(np.mean(drawn, axis=0) - expected[:2]) < 4.0 * error + 1e-12)


def test_random_value_norm_is_the_limit_of_small_gains():
    """At fixed alpha^2 L the recursion tends to the implicit law at first order in alpha^2."""
    start, energy = 1.0, 0.4
    exact = rec.random_value_norm(400, start, energy, 0.3)
    errors = []
    for layers in (400, 800):
        parameters = rec.Recursion(0.0, 6.0 / np.sqrt(layers), 0.0)
        final = rec.rollout(parameters, [start - energy, 0.0, energy], layers, MANY, MANY)[-1]
        assert final[2] == pytest.approx(energy, rel=tol.DYNAMICS_INTEGRATION)
        errors.append(final.sum() - exact)
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=tol.DYNAMICS_ORDER)
    assert rec.random_value_norm(1e8, start, energy, 0.3) == pytest.approx(0.09e8, rel=1e-5)


def test_tiny_gains_and_depths_keep_their_laws():
    tiny = rec.asymptotic_exponents(rec.Recursion(1e-200, 1e-200, 0.0))
    assert tiny == pytest.approx((0.5, 1.0), rel=tol.MEANFIELD_ROUNDING)
    assert rec.random_value_norm(1, 1.0, 0.5, 1e-9) == pytest.approx(1.0, rel=tol.MEANFIELD_ROUNDING)


def test_fresh_noise_against_the_rollout_and_its_crossover():
    constant, noise, gain = 40.0, 0.02, 0.5
    parameters = rec.Recursion(0.0, gain, noise_token=noise)
    r = 1e3
    energies = rec.rollout(parameters, [r**2 - constant, 0.0, constant], 4000, MANY, MANY)
    depth = np.arange(4001) + r / gain
    expected = (constant + noise * (depth - depth[0])) / (gain * depth) ** 2
    assert rec.spread(energies, MANY)[1:] == pytest.approx(expected[1:], rel=tol.DYNAMICS_NOISE)
    law = rec.noisy_spread(depth, constant, noise, gain)
    assert law - noise * depth[0] / (gain * depth) ** 2 == pytest.approx(expected, rel=tol.MEANFIELD_ROUNDING)
    crossover = rec.noise_crossover(constant, noise)
    assert crossover == pytest.approx(constant / noise, rel=tol.MEANFIELD_ROUNDING)
    around = rec.noisy_spread(crossover * np.exp([-1e-4, 1e-4]), constant, noise, gain)
    assert -np.diff(np.log(around))[0] / 2e-4 == pytest.approx(1.5, abs=tol.DYNAMICS_QUOTIENT)


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rec.Recursion(-1.0, 1.0), "gain_frame=-1"),
        (lambda: rec.Recursion(1.0, 1.0, coherence=1.5), r"coherence=1\.5"),
        (lambda: rec.Recursion(1.0, np.nan), "nan"),
        (lambda: rec.rollout(rec.Recursion(1, 1), [1, 1], 3, 2, 2), "last axis"),
        (lambda: rec.population_energies([1, 1, 1], 1, 10), "two or more"),
        (lambda: rec.fit_recursion(np.ones((3, 3)), 4, 68), "at least 4 layers"),
        (lambda: rec.asymptotic_exponents(rec.Recursion(1, 1, noise_token=0.1)), "noise"),
        (lambda: rec.asymptotic_exponents(rec.Recursion(0, 0)), "no gain"),
        (lambda: rec.noisy_spread(0.0, 1.0, 1.0, 1.0), "depth=0"),
        (lambda: rec.noise_crossover(1.0, 0.0), "noise=0"),
        (lambda: rec.random_value_norm(5, 1.0, 1.0, 1.0), "spread_energy=1"),
        (lambda: rec.random_value_norm(np.nan, 1.0, 0.5, 1.0), "depth contains nan"),
        (lambda: rec.random_value_norm([5], 1.0, 0.5, 1.0), "depth has shape"),
        (lambda: rec.Recursion([1.0], 1.0), "gain_frame has shape"),
        (lambda: rec.Recursion(1.0, 1.0, noise_token=[0.1]), "noise_token has shape"),
        (lambda: rec.rollout(rec.Recursion(1, 1), [1, 1, 1], -1, 2, 2), "layers=-1"),
        (lambda: rec.rollout(rec.Recursion(1, 1), [0, 0, 0], 3, 2, 2), "start are 0"),
        (lambda: rec.rollout(rec.Recursion(1, 1, gain_growth=1000.0), [1, 1, 1], 3, 2, 2), "lower gain_growth"),
        (lambda: rec.sample_energies([1, 1, 1], -2, 2), "frames=-2"),
        (lambda: rec.sample_energies([1, 1, 1], 2, np.nan), "tokens_per_frame contains nan"),
        (lambda: rec.spread([0, 0, 0], 6), "energies are 0"),
        (lambda: rec.fit_recursion(np.zeros((6, 3)), 4, 68), "observed energies are 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
