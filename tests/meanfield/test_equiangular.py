"""Equiangular dynamics: particles, the constant of collapse, the solvable case, slopes and whole layers."""

import mpmath as mp
import numpy as np
import pytest

from meanfield import equiangular as eq
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens, softmax

NORMALISATIONS = ("post", "usa", "sqrt", "pre", "mix", "peri", "ngpt")


def _attend(x, beta, normalised=True):
    """Attention output of the directions of x, and the directions."""
    theta = x / np.linalg.norm(x, axis=1, keepdims=True)
    logits = beta * theta @ theta.T
    weights = softmax(logits) if normalised else np.exp(logits) / len(x)
    return weights @ theta, theta


def _velocity(name, t, x, system):
    """The particle ODE of one normalisation (mix: its Post-LN phase), written from the definitions."""
    out, theta = _attend(x, system.beta, normalised=name != "usa")
    if name == "pre":
        return system.gain * out
    if name in ("peri", "ngpt"):
        out = out / np.linalg.norm(out, axis=1, keepdims=True)
    if name == "peri":
        return system.gain * out
    tangential = out - (out * theta).sum(1, keepdims=True) * theta
    return system.gain * tangential / (np.sqrt(t + 1.0) if name == "sqrt" else 1.0)


def _spread(x):
    theta = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    return 1.0 - ((theta.sum(0) ** 2).sum() - n) / (n * (n - 1.0))


def _simulate(system, start, time, step=0.02):
    """Runge-Kutta of order 4; Mix-LN changes its velocity at the switch."""
    x, f = start, _velocity
    for k in range(round(time / step)):
        t, name = k * step, system.normalisation
        if name == "mix":
            name = "post" if t < system.switch - step / 2 else "pre"
        k1 = f(name, t, x, system)
        k2 = f(name, t + step / 2, x + step / 2 * k1, system)
        k3 = f(name, t + step / 2, x + step / 2 * k2, system)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + f(name, t + step, x + step * k3, system))
    return x


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize(("tokens", "beta", "spread"), [(12, 4.0, 0.9), (5, 1.0, 1.1)])
def test_the_ode_is_the_particle_system(name, tokens, beta, spread):
    norm = 1.4 if name in ("pre", "peri") else 1.0
    system = eq.Equiangular(tokens, beta, spread, name, norm, gain=0.8, switch=1.0 if name == "mix" else 0.0)
    gram = spread * np.eye(tokens) + (1.0 - spread)
    start = norm * np.linalg.cholesky(gram)
    x = _simulate(system, start, 2.0, step=0.005 if name == "usa" else 0.02)
    (_, g), (_, r) = eq.trajectory(system, [0.5, 2.0])
    assert _spread(x) == pytest.approx(g, rel=tol.DYNAMICS_RUNGE_KUTTA)
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.full(tokens, r), rel=tol.DYNAMICS_RUNGE_KUTTA)


CONSTANTS = [
    (2, 1.0, 1.0, 1.0, 2.565705),
    (32, 0.0, 1.0, 1.0, 1.0),
    (32, 1.0, 1.0, 1.0, 1.183028),
    (32, 4.0, 1.0, 1.0, 34.281537),
    (256, 4.0, 1.0, 2.0, 9.127884),
    (1024, 8.0, 0.5, 1.0, 0.513916),
    (1e4, 8.0, 0.8, 1.0, 0.830235),
    (64, 3.0, 1.0, 1.0, 2.429270),
]


@pytest.mark.parametrize(("tokens", "beta", "spread", "norm", "printed"), CONSTANTS)
def test_the_constant_of_collapse(tokens, beta, spread, norm, printed):
    """t^2 (1 - gamma) -> C and t W2 -> sqrt((N - 1) C/N), with the gain in the time."""
    system = eq.Equiangular(tokens, beta, spread, norm=norm, gain=0.5)
    constant = eq.collapse_constant(system)
    assert constant == pytest.approx(printed, abs=tol.DYNAMICS_PRINTED)
    time = 1e9
    (g,), (r,) = eq.trajectory(system, [time])
    assert r**2 * g == pytest.approx(constant, rel=tol.DYNAMICS_CONSTANT)
    assert (0.5 * time) ** 2 * g == pytest.approx(constant, rel=tol.DYNAMICS_CONSTANT)
    distance = 0.5 * time * eq.wasserstein_to_dirac(g, tokens)
    assert distance == pytest.approx(np.sqrt((tokens - 1) * constant / tokens), rel=tol.DYNAMICS_CONSTANT)


def test_the_first_integral_is_conserved():
    system = eq.Equiangular(48, 5.0, 0.9, norm=0.7)
    g, r = eq.trajectory(system, [0.5, 2.0, 10.0, 30.0])
    invariant = [x**2 * y * np.exp(-eq.first_integral(y, 0.9, 5.0, 48)) for x, y in zip(r, g, strict=True)]
    assert invariant == pytest.approx(np.full(4, 0.7**2 * 0.9), rel=tol.DYNAMICS_INTEGRATION)


def test_the_first_integral_beside_its_pole():
    """N = 1e12, g_0 = 1: the denominator ends at 1; against the substitution v = -ln(1 - (N - 1) s/N) by mpmath."""
    n, beta = mp.mpf(10) ** 12, 27

    def integrand(v):
        s = n / (n - 1) * -mp.expm1(-v)
        return mp.expm1(beta * s) / s / (n - 1)

    exact = mp.quad(integrand, mp.linspace(0, mp.log(n), 20))
    assert eq.first_integral(0.0, 1.0, beta, 1e12) == pytest.approx(float(exact), rel=tol.MEANFIELD_SERIES)


@pytest.mark.parametrize("name", ["peri", "ngpt"])
def test_initial_slopes_of_sharp_logits(name):
    """At beta = 400, e^{2 beta} overflows: 2 e^{-beta} is left."""
    slope = eq.initial_slope(eq.Equiangular(8, 400.0, normalisation=name))
    assert slope == pytest.approx(2.0 * np.exp(-400.0), rel=tol.MEANFIELD_ROUNDING)


def test_distance_to_the_dirac_from_tokens():
    x = equiangular_tokens(50, 0.07)
    pole = x.mean(0) / np.linalg.norm(x.mean(0))
    measured = np.sqrt(((x - pole) ** 2).sum(1).mean())
    assert eq.wasserstein_to_dirac(0.07, 50) == pytest.approx(measured, rel=tol.MEANFIELD_EXACT)
    assert eq.wasserstein_to_dirac(1e-20, 50) == pytest.approx(np.sqrt(0.98e-20), rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize("name", [n for n in NORMALISATIONS if n != "usa"])
def test_initial_slopes(name):
    """Theorem 4.1 of 2510.22026: the table, and a difference quotient of the trajectory."""
    norm = 1.5 if name in ("pre", "peri") else 1.0
    system = eq.Equiangular(9, 2.0, normalisation=name, norm=norm, gain=0.7, switch=3.0)
    sharp = np.sqrt(np.exp(4.0) + 8) if name in ("peri", "ngpt") else np.exp(2.0) + 8
    assert eq.initial_slope(system) == pytest.approx(0.7 * 2.0 / (norm * sharp), rel=tol.MEANFIELD_ROUNDING)
    assert eq.cosine_velocity(system, 1.0, norm) == pytest.approx(eq.initial_slope(system), rel=tol.MEANFIELD_ROUNDING)
    g, _ = eq.trajectory(system, [1e-5])
    assert (1.0 - g[0]) / 1e-5 == pytest.approx(eq.initial_slope(system), rel=tol.DYNAMICS_QUOTIENT)


@pytest.mark.parametrize(("name", "until"), [("post", 12.0), ("ngpt", 12.0), ("usa", 4.0), ("sqrt", 60.0)])
def test_exponential_collapse_on_the_sphere(name, until):
    """Slopes of ln(1 - gamma): 2 in t, 2 e^beta (USA), 4 in sqrt(t + 1)."""
    system = eq.Equiangular(32, 1.0, 1.0, name, gain=0.9)
    times = np.array([0.8 * until, until])
    g, _ = eq.trajectory(system, times)
    clock = {"usa": np.e * times, "sqrt": 2.0 * np.sqrt(times + 1.0)}.get(name, times)
    assert np.log(g[0] / g[1]) / np.diff(clock) == pytest.approx(2.0 * 0.9, rel=tol.DYNAMICS_SLOPE)
    predicted = np.diff(eq.collapse_exponent(system, times))
    assert np.log(g[0] / g[1]) == pytest.approx(predicted[0], rel=tol.DYNAMICS_SLOPE)


@pytest.mark.parametrize("name", ["pre", "mix", "peri"])
def test_power_law_collapse_with_a_growing_norm(name):
    system = eq.Equiangular(32, 2.0, normalisation=name, switch=1.0)
    g, _ = eq.trajectory(system, [1e5, 1e6])
    assert np.log10(g[0] / g[1]) == pytest.approx(2.0, abs=tol.DYNAMICS_SLOPE)


@pytest.mark.parametrize("name", ["post", "pre", "peri"])
def test_whole_layers_are_exact(name):
    tokens, beta, alpha = 20, 3.0, 0.5
    norm = 1.0 if name == "post" else 1.3
    system = eq.Equiangular(tokens, beta, 0.8, name, norm, gain=alpha)
    x = norm * equiangular_tokens(tokens, 0.8)
    g, r = eq.layers(system, 24)
    for layer in range(25):
        assert _spread(x) == pytest.approx(g[layer], rel=tol.MEANFIELD_EXACT)
        assert np.linalg.norm(x[0]) == pytest.approx(r[layer], rel=tol.MEANFIELD_EXACT)
        out, _ = _attend(x, beta)
        if name == "peri":
            out = out / np.linalg.norm(out, axis=1, keepdims=True)
        x = x + alpha * out
        if name == "post":
            x = x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["post", "pre", "peri"])
def test_layers_tend_to_the_flow_at_first_order(name):
    errors = []
    for count in (200, 400):
        system = eq.Equiangular(64, 2.0, 0.7, name, gain=4.0 / count)
        errors.append(eq.layers(system, count)[0][-1] - eq.trajectory(system, [count])[0][0])
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=tol.DYNAMICS_ORDER)


@pytest.mark.parametrize(
    ("gain", "cosine", "reached"), [(0.01, 0.405, False), (0.1, 0.901, False), (1.0, 0.9988, True)]
)
def test_layer_scale_decides_whether_a_power_law_is_reached(gain, cosine, reached):
    """N = 1e4, beta = 2, L = 24 from gamma = .3: at .01, the initial LayerScale of VGGT, no power law is visible."""
    system = eq.Equiangular(1e4, 2.0, 0.7, gain=gain)
    times = 24.0 * np.exp([-1e-4, 0.0, 1e-4])
    g, _ = eq.trajectory(system, times)
    assert 1.0 - g[1] == pytest.approx(cosine, abs=5e-4)
    exponent, asymptotic = eq.depth_regime(system, 24)
    assert asymptotic is reached
    assert exponent == pytest.approx(np.log(g[0] / g[2]) / 2e-4, rel=tol.DYNAMICS_QUOTIENT)
    rescaled = eq.Equiangular(1e4, 2.0, 0.7, norm=5.0, gain=5.0 * gain)
    assert eq.trajectory(rescaled, [24.0])[0][0] == pytest.approx(g[1], rel=tol.DYNAMICS_INTEGRATION)


def test_metastability_of_iid_tokens():
    """Tokens beyond beta g = ln N hold still, those below collapse; both as the ODE from orthogonal tokens says."""
    rng = np.random.default_rng(0)
    tokens, dim = 64, 1024
    start = rng.standard_normal((tokens, dim))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    start = np.linalg.cholesky(start @ start.T)  # the same tokens in their own 64-dimensional span
    left = {}
    for share in (0.5, 2.0):
        beta = share * np.log(tokens)
        system = eq.Equiangular(tokens, beta, _spread(start))
        assert eq.metastable(1.0, beta, tokens) == (share > 1.0)
        measured = _spread(_simulate(system, start, 4.0, step=0.2))
        left[share] = eq.trajectory(system, [4.0])[0][0]
        assert measured == pytest.approx(left[share], abs=4.0 / np.sqrt(dim))
    assert left[0.5] < 0.3 and left[2.0] > 0.9


def test_iid_tokens_keep_the_constant_of_collapse():
    """i.i.d. uniform start, d = 4 N: at t = 40 within 2 per cent of the ODE from their mean cosine (2.1)."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 256))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    system = eq.Equiangular(64, 1.0, _spread(x))
    measured = _spread(_simulate(system, x, 40.0, step=0.2))
    assert measured == pytest.approx(eq.trajectory(system, [40.0])[0][0], rel=tol.DYNAMICS_IID)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eq.Equiangular(-3, 1.0), "N=-3"),
        (lambda: eq.Equiangular(8, np.inf), "beta contains inf"),
        (lambda: eq.Equiangular(8, 1.0, spread=np.nan), "spread contains nan"),
        (lambda: eq.Equiangular(8, 1.0, spread=1.2), "spread=1.2"),
        (lambda: eq.Equiangular(8, 1.0, norm=0.0), "norm=0"),
        (lambda: eq.Equiangular(8, 1.0, normalisation="none"), "'none' is unknown"),
        (lambda: eq.Equiangular(8, 1.0, normalisation="post", norm=2.0), "unit sphere"),
        (lambda: eq.trajectory(eq.Equiangular(8, 1.0), [1.0, 0.5]), "decrease"),
        (lambda: eq.layers(eq.Equiangular(8, 1.0, normalisation="ngpt"), 3), "use trajectory"),
        (lambda: eq.layers(eq.Equiangular(8, 1.0), -1), "depth=-1"),
        (lambda: eq.collapse_constant(eq.Equiangular(8, 1.0, normalisation="post")), "'post'"),
        (lambda: eq.first_integral(0.5, 0.2, 1.0, 8), "g <= g_0"),
        (lambda: eq.initial_slope(eq.Equiangular(8, 1.0, 0.5)), "spread=0.5"),
        (lambda: eq.collapse_exponent(eq.Equiangular(8, 1.0), 3.0), "power of t"),
        (lambda: eq.wasserstein_to_dirac(1.5, 2.0), None),
        (lambda: eq.wasserstein_to_dirac(2.5, 8), "spread=2.5"),
        (lambda: eq.Equiangular(8, [1.0, 2.0]), "beta has shape"),
        (lambda: eq.Equiangular(8, 1.0, spread=[0.5]), "spread has shape"),
        (lambda: eq.layers(eq.Equiangular(8, 1.0), 2.5), "depth=2.5 is not a whole number"),
        (lambda: eq.layers(eq.Equiangular(8, 1.0, gain=1e300), 3), "lower the gain"),
        (lambda: eq.depth_regime(eq.Equiangular(8, 1.0), [3]), "depth has shape"),
        (lambda: eq.first_integral([0.0], 1.0, 1.0, 8), "spread has shape"),
        (lambda: eq.cosine_velocity(eq.Equiangular(8, 1.0, normalisation="peri"), 2.0, 1.0), "spread=2"),
        (lambda: eq.cosine_velocity(eq.Equiangular(3, 0.0, normalisation="ngpt"), 1.5, 1.0), "spread=1.5"),
        (lambda: eq.collapse_constant(eq.Equiangular(2, 700.0, 1.0)), "use ln C"),
        (lambda: eq.trajectory(eq.Equiangular(8, 300, 0.5, "usa"), [1e-3]), "integration from t=0 failed"),
        (lambda: eq.depth_regime(eq.Equiangular(8, 0.0, normalisation="post"), 3), "'post'"),
    ],
)
def test_bad_input_is_named(call, message):
    if message is None:
        assert np.isfinite(call())
    else:
        with pytest.raises(ValueError, match=message):
            call()
