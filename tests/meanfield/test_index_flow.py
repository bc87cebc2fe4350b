"""The heat flow over token indices with a real attention matrix."""

import mpmath as mp
import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from meanfield import index_flow as flow
from tests import tolerances as tol
from tests.meanfield.dense import softmax


def test_the_gains_are_alpha_over_the_norm_before_each_layer():
    assert np.array_equal(flow.pre_norm_gains(3, 2.0, 0.5), 0.5 / np.array([2.0, 2.5, 3.0]))


def attention(tokens=30, dim=6, beta=1.5, seed=0):
    """Softmax attention between unit tokens with symmetric logits (reversible), and the tokens."""
    x = np.random.default_rng(seed).standard_normal((tokens, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return softmax(beta * x @ x.T), x


@pytest.mark.parametrize("method", ["explicit", "implicit"])
@pytest.mark.parametrize("reversible", [True, False])
def test_the_stationary_mean_is_conserved_and_extremes_shrink(method, reversible):
    a, x = attention()
    if not reversible:
        a = softmax(3.0 * np.random.default_rng(1).standard_normal(a.shape))
    gains = np.array([1.0, 0.7, 0.0, 0.3]) * (1.0 if method == "explicit" else 50.0)
    tokens = flow.index_flow(a, x, gains, method=method)["tokens"].values
    pi = flow.stationary_distribution(a)
    np.testing.assert_allclose(pi @ a, pi, atol=tol.MEANFIELD_ROUNDING)
    np.testing.assert_allclose(pi @ tokens, np.broadcast_to(pi @ x, (5, x.shape[1])), atol=tol.MEANFIELD_ROUNDING)
    assert np.all(np.diff(tokens.max(axis=1), axis=0) <= tol.MEANFIELD_ROUNDING)
    assert np.all(np.diff(tokens.min(axis=1), axis=0) >= -tol.MEANFIELD_ROUNDING)


def test_one_layer_is_the_formula():
    a, x = attention()
    identity = np.eye(len(a))
    explicit = flow.index_flow(a, x, [0.4])["tokens"][1]
    np.testing.assert_allclose(explicit, (identity + 0.4 * (a - identity)) @ x, atol=tol.MEANFIELD_ROUNDING)
    implicit = flow.index_flow(a, x, [0.4], method="implicit")["tokens"][1]
    np.testing.assert_allclose((identity - 0.4 * (a - identity)) @ implicit.values, x, atol=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize("method", ["explicit", "implicit"])
def test_an_operator_gives_what_its_matrix_gives(method):
    a, x = attention()
    gains = flow.pre_norm_gains(5, 2.0)
    dense = flow.index_flow(a, x, gains, method=method)
    operator = flow.index_flow(aslinearoperator(a), x, gains, method=method)
    np.testing.assert_allclose(operator["tokens"], dense["tokens"], atol=tol.FLOW_OPERATOR)
    pi = flow.stationary_distribution(aslinearoperator(a))
    np.testing.assert_allclose(pi, flow.stationary_distribution(a), atol=tol.MEANFIELD_ROUNDING)


def test_the_normalised_pre_norm_residual_flow_is_an_index_flow():
    """X <- X + (alpha/r_l) A X over the norm r_{l+1} = r_l + alpha of the common mode has gain alpha/r_{l+1}."""
    a, x = attention()
    gain, norm = 0.5, 1.2
    residual = x * norm
    norms = norm + gain * np.arange(6)
    for r in norms[:-1]:
        residual = residual + gain / r * a @ residual
    normalised = flow.index_flow(a, x, gain / norms[1:])["tokens"][-1]
    np.testing.assert_allclose(residual / norms[-1], normalised, atol=tol.MEANFIELD_ROUNDING)


def test_every_mode_decays_by_its_exact_amplitude_and_power():
    a, _ = attention()
    eigenvalues, vectors = np.linalg.eig(a)
    order = np.argsort(-eigenvalues.real)
    deficits = flow.relaxation_deficits(a)
    np.testing.assert_allclose(deficits.real, 1.0 - eigenvalues.real[order], atol=tol.MEANFIELD_EXACT)
    np.testing.assert_allclose(deficits.imag, 0.0, atol=tol.MEANFIELD_EXACT)
    layers, norm, gain = 400, 1.5, 0.5
    chosen = order[[1, 3, 10]]
    start = vectors[:, chosen].real
    end = flow.index_flow(a, start, flow.pre_norm_gains(layers, norm, gain))["tokens"].values
    amplitude = np.linalg.norm(end, axis=1) / np.linalg.norm(start, axis=0)
    q = 1.0 - eigenvalues.real[chosen]
    np.testing.assert_allclose(amplitude[-1], flow.mode_amplitude(layers, q, norm, gain), rtol=tol.MEANFIELD_EXACT)
    slope = np.log(amplitude[-1] / amplitude[200]) / np.log((layers + norm / gain) / (200 + norm / gain))
    np.testing.assert_allclose(slope, -q, rtol=tol.FLOW_EXPONENT)


@pytest.mark.parametrize(
    ("layers", "ratio", "deficit"),
    [(100, 1e10, 0.5), (100, 1e8, 0.5), (1e15, 1.0, 0.5), (1e10, 1e15, 0.5), (3, 2.0, 0.0), (7, 30.0, 25.0)],
)
def test_amplitudes_keep_their_digits(layers, ratio, deficit):
    with mp.workdps(50):
        exact = mp.gammaprod(
            [mp.mpf(layers) + ratio - deficit, ratio], [mp.mpf(layers) + ratio, ratio - mp.mpf(deficit)]
        )
        loss = float(1 - exact)
    found = float(flow.mode_amplitude(layers, deficit, ratio))
    assert found == pytest.approx(float(exact), rel=tol.MEANFIELD_ROUNDING)
    assert 1.0 - found == pytest.approx(loss, rel=1e-7, abs=1e-15)


def test_a_periodic_walk_has_its_distribution():
    cycle = np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(flow.stationary_distribution(cycle), 0.5, rtol=tol.MEANFIELD_ROUNDING)


def test_the_power_law_is_the_limit_of_thin_layers():
    deep = flow.mode_amplitude(10_000, 0.7, 3.0, 1e-3)
    assert flow.mode_power_law(10_000, 0.3, 3.0, 1e-3) == pytest.approx(deep, rel=1e-3)
    ratio = flow.mode_power_law([1e6, 1e8], 0.3, 1.0)
    assert np.log(ratio[1] / ratio[0]) / np.log(100.0) == pytest.approx(-0.7, rel=1e-5)


def test_deviations_fall_at_least_by_the_spectral_gap():
    """In the norm of pi, for reversible attention with eigenvalues >= 0."""
    a, x = attention(beta=3.0)
    pi = flow.stationary_distribution(a)
    tokens = flow.index_flow(a, x, np.full(10, 0.5))["tokens"].values
    distance = np.sqrt(np.einsum("n,lnc->l", pi, (tokens - pi @ x) ** 2))
    gap = flow.relaxation_deficits(a).real[1]
    assert np.all(distance[1:] <= distance[:-1] * (1.0 - 0.5 * gap) * (1.0 + tol.MEANFIELD_ROUNDING))


def test_total_diffusion_is_logarithmic():
    a, x = attention()
    ds = flow.index_flow(a, x, flow.pre_norm_gains(1000, 100.0))
    assert float(ds["diffusion_time"][-1]) == pytest.approx(np.log(1100.0 / 100.0), rel=tol.FLOW_EXPONENT)


def test_a_nearly_reducible_matrix_is_reported():
    blocks = np.array([[1.0 - 1e-9, 1e-9], [3e-9, 1.0 - 3e-9]])
    with pytest.raises(ValueError, match="nearly reducible"):
        flow.stationary_distribution(blocks, iterations=100)


A, X = attention(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow.index_flow(2.0 * A, X, [0.1]), "row of attention sums"),
        (lambda: flow.index_flow(aslinearoperator(2.0 * A), X, [0.1]), "row of attention sums"),
        (lambda: flow.index_flow(A - 0.5 + 0.5 * np.eye(4) * 4, X, [0.1]), "attention contains -"),
        (lambda: flow.index_flow(A * np.nan, X, [0.1]), "attention contains nan"),
        (lambda: flow.index_flow(A[:3], X, [0.1]), r"shape \(3, 4\)"),
        (lambda: flow.index_flow(A, X[:3], [0.1]), r"tokens have shape \(3, 6\)"),
        (lambda: flow.index_flow(A, X * np.inf, [0.1]), "tokens contains"),
        (lambda: flow.index_flow(A, X, [1.5]), "gains=1.5.*implicit"),
        (lambda: flow.index_flow(A, X, [-0.1], method="implicit"), "gains=-0.1"),
        (lambda: flow.index_flow(A, X, [0.1], method="heun"), "method='heun'"),
        (lambda: flow.relaxation_deficits(aslinearoperator(A)), "LinearOperator"),
        (lambda: flow.pre_norm_gains(0, 1.0), "layers=0"),
        (lambda: flow.pre_norm_gains(3, 0.0), "initial_norm=0"),
        (lambda: flow.mode_amplitude(3, 1.0, 1.0), "deficit=1"),
        (lambda: flow.mode_amplitude(-1, 0.5, 1.0), "layers=-1"),
        (lambda: flow.mode_power_law(1.0, 1.5, 1.0), "eigenvalue=1.5"),
        (lambda: flow.mode_amplitude(3, 0.5, [2.0, 5.0]), "initial_norm has shape"),
        (lambda: flow.mode_power_law(3.0, 0.5, [2.0, 5.0]), "initial_norm has shape"),
        (lambda: flow.pre_norm_gains(2, [2.0, 5.0]), "initial_norm has shape"),
        (lambda: flow.pre_norm_gains(2.5, 1.0), "layers=2.5"),
        (lambda: flow.index_flow(A, X, [[0.5, 0.2]]), "gains have shape"),
        (lambda: flow.index_flow(A, X, [1e300], method="implicit"), "gains=1e"),
        (lambda: flow.stationary_distribution(np.eye(3)), "not unique"),
        (lambda: flow.stationary_distribution(A.astype(complex)), "complex"),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
