"""Particles against the exact recursions and equations of equiangular tokens, dense matrices, and symmetries."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from meanfield import ranks
from meanfield import recursion as rec
from meanfield.closed_forms import contraction
from meanfield.measure import Measure, unit
from meanfield.normalisation import NORMALISATIONS
from meanfield.particles import Dynamics, haar, observe, simulate
from meanfield.steppers import Adaptive, rk4
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax

PLACEMENTS = [placement.name for placement in NORMALISATIONS]
TOKENS, SPREAD, BETA = 24, 0.8, 3.0


@pytest.fixture
def equiangular():
    """N tokens of norm 1.3 in d = N dimensions, turned at random."""
    return 1.3 * equiangular_tokens(TOKENS, SPREAD) @ haar(np.random.default_rng(0), TOKENS)


def test_pre_ln_layers_follow_the_two_mode_recursion(equiangular):
    """2.2 A: M <- (1 + alpha/r)^2 M, D <- (1 + alpha delta/r)^2 D, exactly, and the tokens stay equiangular."""
    gain, layers = 0.7, 30
    solution = simulate(equiangular, Dynamics(beta=BETA, gain=gain), layers=layers)
    start = rec.population_energies([*Measure(equiangular).energies, 0.0], TOKENS, 2.0)
    expected = rec.rollout(rec.Recursion(0.0, gain, beta=BETA), start, layers, TOKENS, 1.0)
    assert solution.data.mean_energy.values == pytest.approx(expected[:, 0], rel=tol.MEANFIELD_DEPTH)
    assert solution.data.within_energy.values == pytest.approx(expected[:, 1], rel=tol.MEANFIELD_DEPTH)
    assert solution.data.spread.values == pytest.approx(rec.spread(expected, TOKENS), rel=tol.MEANFIELD_DEPTH)
    cosines = unit(solution.final.points) @ unit(solution.final.points).T
    pairs = cosines[~np.eye(TOKENS, dtype=bool)]
    assert np.ptp(pairs) < tol.MEANFIELD_DEPTH


@pytest.mark.parametrize(("placement", "power"), [("post-ln", 0.0), ("sqrt", 0.5)])
def test_post_ln_layers_contract_the_ratio_of_modes(placement, power, equiangular):
    """2.2 A: u <- ((1 + a delta)/(1 + a))^2 u, u = g/(1 + (N - 1)(1 - g)), exactly; a = gain (layer + 1)^-power."""
    gain = 0.5 * np.arange(1.0, 9.0) ** -power
    g = simulate(equiangular, Dynamics(placement, beta=BETA, gain=0.5), layers=8).data.spread.values
    u = g / (1.0 + (TOKENS - 1) * (1.0 - g))
    factor = ((1.0 + gain * contraction(g[:-1], BETA, TOKENS)) / (1.0 + gain)) ** 2
    assert u[1:] / u[:-1] == pytest.approx(factor, rel=tol.MEANFIELD_DEPTH)


def equiangular_equations(placement, t, state):
    """(dg/dt, dr/dt) of equiangular tokens: theta' = P A/s with A = a theta + b sum of the others."""
    g, r = state
    normaliser = np.exp(BETA) + (TOKENS - 1) * np.exp(BETA * (1.0 - g))
    own, other = np.exp(BETA) / normaliser, np.exp(BETA * (1.0 - g)) / normaliser
    along = own + (TOKENS - 1) * other * (1.0 - g)
    delta = own - other
    norm = np.sqrt(delta**2 + other * (1.0 + (TOKENS - 1) * (1.0 - g)) * (2.0 * delta + TOKENS * other))
    speed, growth = {
        "post-ln": (1.0, 0.0),
        "pre-ln": (1.0 / r, along),
        "mix-ln": (1.0, 0.0) if t < 6.0 else (1.0 / r, along),
        "peri-ln": (1.0 / (r * norm), along / norm),
        "ngpt": (1.0 / norm, 0.0),
        "sqrt": (1.0 / np.sqrt(t + 1.0), 0.0),
    }[placement]
    return [-2.0 * other * g * (1.0 + (TOKENS - 1) * (1.0 - g)) * speed, growth]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_flow_follows_the_equiangular_equations(placement, equiangular):
    times = np.arange(5.0)
    solution = simulate(equiangular, Dynamics(placement, beta=BETA), layers=4, flow=rk4(1 / 32))
    exact = solve_ivp(
        lambda t, state: equiangular_equations(placement, t, state),
        (0.0, 4.0),
        [SPREAD, 1.3],
        t_eval=times,
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
    ).y
    assert solution.data.spread.values == pytest.approx(exact[0], rel=tol.MEANFIELD_RK4)
    assert solution.data.radius.values == pytest.approx(exact[1], rel=tol.MEANFIELD_RK4)


def test_the_flow_in_frames_is_the_limit_of_many_thin_layers():
    x = unit(np.random.default_rng(1).standard_normal((12, 5)))
    settings = {"beta": 2.0, "frames": 3}
    flow = simulate(x, Dynamics(gain=1.0, frame_gain=0.5, **settings), layers=1, flow=Adaptive()).final.points
    thin = [
        simulate(x, Dynamics(gain=1.0 / n, frame_gain=0.5 / n, **settings), layers=n, record=[]).final.points
        for n in (40, 80)
    ]
    assert np.abs(2.0 * thin[1] - thin[0] - flow).max() < tol.MEANFIELD_THIN_LAYERS


def test_a_frame_block_is_masked_attention():
    x = np.random.default_rng(2).standard_normal((12, 5))
    frame = np.arange(12) // 4
    theta = unit(x)
    mask = np.where(frame[:, None] == frame, 0.0, -np.inf)
    middle = x + 0.5 * softmax(BETA * theta @ theta.T + mask) @ theta
    theta = unit(middle)
    expected = middle + 0.7 * softmax(BETA * theta @ theta.T) @ theta
    dynamics = Dynamics(beta=BETA, gain=0.7, frame_gain=0.5, frames=3)
    assert simulate(x, dynamics, layers=1).final.points == pytest.approx(expected, abs=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_layers_commute_with_permutations(placement):
    rng = np.random.default_rng(3)
    x, order = rng.standard_normal((40, 6)), rng.permutation(40)
    dynamics = Dynamics(placement, beta=BETA)
    plain, permuted = (simulate(y, dynamics, layers=6, block=16).final.points for y in (x, x[order]))
    assert permuted == pytest.approx(plain[order], rel=tol.MEANFIELD_DEPTH, abs=tol.MEANFIELD_DEPTH)


@pytest.mark.parametrize("frames", [None, 4])
@pytest.mark.parametrize("flow", [None, rk4(0.5)], ids=["layers", "flow"])
def test_a_token_of_mass_two_is_two_equal_tokens(flow, frames):
    rng = np.random.default_rng(4)
    x, mass = rng.standard_normal((20, 6)), np.tile([1, 2, 3, 1, 2], 4)
    dynamics = Dynamics("peri-ln", beta=2.0, frames=frames)
    options = {"layers": 5, "flow": flow, "attention": True}
    massive = simulate(Measure(x, np.log(mass)), dynamics, **options)
    repeated = simulate(np.repeat(x, mass, axis=0), dynamics, **options)
    expected = np.repeat(massive.final.points, mass, axis=0)
    assert repeated.final.points == pytest.approx(expected, rel=tol.MEANFIELD_DEPTH, abs=tol.MEANFIELD_DEPTH)
    for name in massive.data:
        assert massive.data[name].values == pytest.approx(
            repeated.data[name].values, rel=tol.MEANFIELD_GRAM, abs=tol.MEANFIELD_GRAM
        )


def test_blocks_and_workers_do_not_change_the_tokens():
    x = np.random.default_rng(5).standard_normal((50, 6))
    one, many = (simulate(x, Dynamics(), layers=4, **o).final.points for o in ({}, {"block": 8, "workers": 2}))
    assert many == pytest.approx(one, rel=tol.MEANFIELD_DEPTH, abs=tol.MEANFIELD_DEPTH)
    single = simulate(x, Dynamics(), layers=4, dtype=np.float32).final.points
    assert np.abs(single - one).max() < tol.MEANFIELD_FLOAT32


def test_observables_against_dense_matrices():
    x = np.random.default_rng(6).standard_normal((30, 7)) + 0.4
    theta = unit(x)
    attention = softmax(BETA * theta @ theta.T)
    seen = observe(Measure(x), frames=5, beta=BETA)
    frame_means = x.reshape(5, 6, 7).mean(1)
    expected = {
        "mean_energy": (x.mean(0) ** 2).sum(),
        "between_energy": frame_means.var(0).sum(),
        "within_energy": x.reshape(5, 6, 7).var(1).sum(-1).mean(),
        "radius": np.sqrt((x**2).sum(1).mean()),
        "entropy": ranks.attention_entropy(attention),
        "frobenius_squared": (attention**2).sum(),
        **{f"token_{name}": value for name, value in ranks.token_ranks(theta).items()},
        **{f"centred_{name}": value for name, value in ranks.token_ranks(theta, centred=True).items()},
    }
    for name, value in expected.items():
        assert seen[name] == pytest.approx(float(value), rel=tol.MEANFIELD_EXACT), name
    wide = observe(Measure(x[:4]))
    assert wide["token_effective_rank"] == pytest.approx(
        float(ranks.effective_rank(np.linalg.svd(theta[:4])[1])), rel=tol.MEANFIELD_EXACT
    )
    assert "entropy" not in wide and wide["between_energy"] == 0.0
    assert np.isnan(observe(Measure(np.ones((4, 3))))["centred_stable_rank"])


@pytest.mark.parametrize("coherence", [0.0, 0.6])
def test_random_values_multiply_the_mean_energy_as_2_2_d_says(coherence):
    """E M <- M (1 + 2 c alpha/r + alpha^2/r^2) over V = c I + sqrt(1 - c^2) Q; 4 standard errors of 150 draws."""
    x = equiangular_tokens(16, 0.5)
    rng = np.random.default_rng(7)
    dynamics = Dynamics(beta=1.0, gain=0.8, coherence=coherence)
    energies = [simulate(x, dynamics, layers=1, rng=rng).data.mean_energy.values for _ in range(150)]
    ratio = np.array([after / before for before, after in energies])
    error = ratio.std() / np.sqrt(len(ratio))
    assert abs(ratio.mean() - (1.0 + 1.6 * coherence + 0.64)) < tol.SIGMAS * error
    assert error < 0.05


def test_noise_adds_its_energy_to_every_token():
    """4 standard errors: |sum of N d squares| has the relative deviation sqrt(2/(N d))."""
    x = 1e-3 * unit(np.random.default_rng(8).standard_normal((300, 20)))
    dynamics = Dynamics(gain=0.0, noise=0.5)
    added = simulate(x, dynamics, layers=2, rng=np.random.default_rng(9)).final.points - x
    assert (added**2).sum(1).mean() == pytest.approx(1.0, rel=tol.SIGMAS * np.sqrt(2.0 / (300 * 20)))


def test_haar_matrices_are_orthogonal_and_centred():
    rng = np.random.default_rng(10)
    draws = np.array([haar(rng, 3) for _ in range(500)])
    assert draws @ draws.transpose(0, 2, 1) == pytest.approx(np.broadcast_to(np.eye(3), draws.shape), abs=1e-12)
    assert np.abs(draws.mean(0)).max() < tol.SIGMAS * np.sqrt(1.0 / 3.0 / len(draws))


def test_a_run_is_recorded_and_repeatable():
    x = np.random.default_rng(11).standard_normal((10, 4))
    dynamics, calls = Dynamics(coherence=0.5, noise=0.1), []
    first, again = (
        simulate(
            x, dynamics, layers=6, rng=np.random.default_rng(12), record=[2], progress=lambda *at: calls.append(at)
        )
        for _ in range(2)
    )
    assert first.data.identical(again.data) and np.array_equal(first.final.points, again.final.points)
    assert list(first.data.layer) == [0, 2, 6] and calls[:6] == [(i, 6) for i in range(1, 7)]
    assert first.data.attrs["seed"] == "12" and first.data.attrs["tokens"] == 10
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in first.data.variables.values())
    assert first.data.spread[-1] == pytest.approx(first.final.spread(), rel=tol.MEANFIELD_ROUNDING)


def test_whole_numbers_may_be_floats():
    x = np.random.default_rng(13).standard_normal((6, 4))
    whole, floats = (simulate(x, Dynamics(frames=f), layers=n) for f, n in ((2, 3), (2.0, 3.0)))
    assert whole.data.identical(floats.data)


@pytest.mark.filterwarnings("error")
def test_the_frobenius_norm_of_huge_masses():
    x = np.random.default_rng(14).standard_normal((10, 4))
    plain, massive = (observe(Measure(x, mass), beta=BETA) for mass in (None, np.full(10, 1e4)))
    assert massive["frobenius_squared"] == pytest.approx(plain["frobenius_squared"], rel=tol.MEANFIELD_SHARP_ROWS)
    assert observe(x, beta=BETA) == plain


X = np.ones((6, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dynamics("layernorm"), "'layernorm' is unknown"),
        (lambda: Dynamics(beta=np.inf), "beta contains inf"),
        (lambda: Dynamics(gain=-1.0), "gain=-1"),
        (lambda: Dynamics(coherence=2.0), "coherence=2"),
        (lambda: Dynamics(noise=np.nan), "noise contains nan"),
        (lambda: Dynamics(frames=0), "frames=0"),
        (lambda: Dynamics(frame_gain=0.5), "without frames"),
        (lambda: simulate(X, Dynamics(frames=4), layers=1), "N=6 tokens are not frames=4"),
        (lambda: simulate(X, Dynamics(), layers=0), "layers=0"),
        (lambda: simulate(X, Dynamics(), layers=2, record=[3]), "record contains 3"),
        (lambda: simulate(X, Dynamics(), layers=2, record=[0.5]), r"record=0\.5"),
        (lambda: simulate(X, Dynamics(), layers=np.inf), "layers contains inf"),
        (lambda: simulate(X, Dynamics(), layers=[3]), "layers has shape"),
        (lambda: Dynamics(frames=2.5), r"frames=2\.5"),
        (lambda: Dynamics(beta=[1.0, 2.0]), "beta has shape"),
        (lambda: simulate(1e200 * X, Dynamics(), layers=1), r"points=1e\+200"),
        (lambda: haar(None, 2), "rng=None"),
        (lambda: observe(Measure(X, [-0.5] * 6), beta=1.0), r"log_mass=-0\.5"),
        (lambda: simulate(X, Dynamics(noise=1.0), layers=1), "need rng"),
        (lambda: simulate(X, Dynamics(noise=1.0), layers=1, flow=rk4(), rng=np.random.default_rng()), "leave flow out"),
        (lambda: simulate(0 * X, Dynamics(), layers=1), "no direction"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
