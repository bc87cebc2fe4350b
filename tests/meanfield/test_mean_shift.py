"""Laws of the mean shift against particles, quadrature and Sinkhorn iterations."""

import numpy as np
import pytest
from scipy.special import lambertw
from scipy.stats import norm

from meanfield import mean_shift as ms
from tests import tolerances as tol
from tests.meanfield.dense import softmax


def quantiles(count):
    """Equal-weight particles of the standard normal law, variance 1."""
    x = norm.ppf((np.arange(count) + 0.5) / count)
    return x / x.std()


def shifted(x, beta, time, step):
    """The particles after `time` under the mean shift, by the midpoint rule."""

    def velocity(x):
        return softmax(-0.5 * beta * (x[:, None] - x) ** 2) @ x - x

    for _ in range(round(time / step)):
        x = x + step * velocity(x + 0.5 * step * velocity(x))
    return x


@pytest.mark.parametrize(("beta", "time"), [(0.5, 2.0), (5.0, 3.0)])
def test_variance_of_a_blob_of_particles(beta, time):
    variance = shifted(quantiles(300), beta, time, 0.05).var()
    assert ms.mean_shift_variance(time, 1.0, beta) == pytest.approx(variance, rel=tol.MEAN_SHIFT_PARTICLES)


def test_variance_is_lamberts_where_that_can_be_formed():
    t, s0, beta = 1.3, 0.7, 4.0
    direct = lambertw(beta * s0 * np.exp(beta * s0 - 2.0 * t)).real / beta
    assert ms.mean_shift_variance(t, s0, beta) == pytest.approx(direct, rel=tol.MEANFIELD_ROUNDING)


def test_the_two_regimes_and_no_overflow():
    linear = ms.mean_shift_variance([1.0, 10.0], 1.0, 1e6)
    np.testing.assert_allclose(1.0 - linear, 2.0 * np.array([1.0, 10.0]) / 1e6, rtol=1e-4)
    exponential = ms.mean_shift_variance([200.0, 201.0], 1.0, 2.0)
    assert exponential[1] / exponential[0] == pytest.approx(np.exp(-2.0), rel=tol.MEANFIELD_ROUNDING)
    assert exponential[0] == pytest.approx(np.exp(2.0 - 400.0), rel=tol.MEANFIELD_ROUNDING)


def test_the_law_stops_where_the_cloud_breaks_up():
    """At beta = 50 the modulational instability makes clusters: .58 (N = 200) against .417."""
    variance = shifted(quantiles(200), 50.0, 15.0, 0.1).var()
    assert variance > 1.05 * ms.mean_shift_variance(15.0, 1.0, 50.0)


@pytest.mark.parametrize("waves", [1, 3, 8])
def test_growth_of_a_modulation(waves):
    """Particles on a ring of length 2 pi, displaced so that their density is 1 + a cos(kx)."""
    count, beta, start, step = 256, 16.0, 5e-3, 0.02
    even = 2.0 * np.pi * np.arange(count) / count
    x = even - start / waves * np.sin(waves * even)
    mode = [np.abs(np.exp(1j * waves * x).mean())]
    for _ in range(50):
        gap = (x - x[:, None] + np.pi) % (2.0 * np.pi) - np.pi
        x = x + step * (softmax(-0.5 * beta * gap**2) * gap).sum(1)
        mode.append(np.abs(np.exp(1j * waves * x).mean()))
    rate = np.log1p(step * ms.modulation_growth(waves, beta)) / step
    assert np.log(mode[-1] / mode[0]) / (50 * step) == pytest.approx(rate, rel=tol.MODULATION_PARTICLES)


def test_the_kernel_cuts_the_growth_off():
    k = np.linspace(0.1, 30.0, 3000)
    growth = ms.modulation_growth(k, 16.0)
    assert k[growth.argmax()] == pytest.approx(np.sqrt(32.0), abs=k[1] - k[0])
    assert growth.max() == pytest.approx(2.0 / np.e, rel=1e-4)
    assert np.all(growth <= k**2 / 16.0)


@pytest.mark.parametrize("normalisation", ["none", "softmax", "sinkhorn"])
def test_local_velocity_is_the_limit_of_the_sums(normalisation):
    beta = 500.0
    x = np.linspace(-6.0, 6.0, 2401)
    weight = (x[1] - x[0]) * norm.pdf(x)
    kernel = np.sqrt(beta / (2.0 * np.pi)) * np.exp(-0.5 * beta * (x[:, None] - x) ** 2)
    left = right = np.ones_like(x)
    if normalisation == "softmax":
        left = 1.0 / (kernel @ weight)
    if normalisation == "sinkhorn":
        for _ in range(100):
            left = np.sqrt(left / (kernel @ (weight * left)))
        right = left
    velocity = left * ((kernel * (x - x[:, None])) @ (weight * right))
    inside = np.abs(x - 0.7) < 0.01
    limit = ms.local_velocity(norm.pdf(x), -x * norm.pdf(x), beta, normalisation)
    np.testing.assert_allclose(velocity[inside], limit[inside], rtol=tol.LOCAL_LIMIT)


def test_local_diffusivities_of_repulsive_attention():
    density = np.array([0.0, 0.5, 2.0])
    assert ms.local_diffusivity(density, 4.0, "none").tolist() == pytest.approx([0.0, 0.125, 0.5])
    assert ms.local_diffusivity(density, 4.0, "softmax").tolist() == [0.25] * 3
    assert ms.local_diffusivity(density, 4.0, "sinkhorn", value=-2.0).tolist() == [0.25] * 3


@pytest.mark.parametrize("normalisation", ["none", "softmax", "sinkhorn"])
def test_attraction_has_no_diffusivity(normalisation):
    with pytest.raises(ValueError, match=r"ill-posed.*never O\(1/L\).*meanfield\.simulate"):
        ms.local_diffusivity(0.5, 4.0, normalisation, value=1.0)


def sinkhorn(kernel, weight):
    """The scaling u with u_i sum_j kernel_ij u_j weight_j = 1, symmetric kernel."""
    u = np.ones(len(weight))
    for _ in range(300):
        u = np.sqrt(u / (kernel @ (u * weight)))
    return u


def test_sinkhorn_coefficient_by_quadrature():
    beta, variance = 1.5, 0.8
    x = np.linspace(-8.0, 8.0, 161)
    weight = (x[1] - x[0]) * norm.pdf(x, scale=np.sqrt(variance))
    kernel = np.exp(-0.5 * beta * (x[:, None] - x) ** 2)
    u = sinkhorn(kernel, weight)
    mean = u * (kernel @ (u * weight * x))
    inside = np.abs(x) < 2.0
    expected = ms.sinkhorn_coefficient(beta, variance) * x[inside]
    np.testing.assert_allclose(mean[inside], expected, atol=tol.DIFFUSION_INTEGRATION)


def test_sinkhorn_and_softmax_coefficients_on_samples():
    x = np.random.default_rng(3).standard_normal(800)
    beta, kernel = 4.0, np.exp(-2.0 * (x[:, None] - x) ** 2)
    u = sinkhorn(kernel, np.ones(800))
    found = np.linalg.eigvalsh(u[:, None] * kernel * u)[-2]
    assert ms.sinkhorn_coefficient(beta, x.var()) == pytest.approx(found, rel=tol.SINKHORN_SAMPLES)
    rows = kernel.sum(1)
    found = np.linalg.eigvalsh(kernel / np.sqrt(np.outer(rows, rows)))[-2]
    assert ms.softmax_coefficient(beta, x.var()) == pytest.approx(found, rel=tol.SINKHORN_SAMPLES)


def test_sinkhorn_coefficient_of_a_narrow_kernel_does_not_overflow():
    assert ms.sinkhorn_coefficient(1e200, 1.0) == pytest.approx(1.0, rel=tol.MEANFIELD_ROUNDING)


def test_narrow_kernels_shift_half_as_fast_with_sinkhorn():
    ratio = (1.0 - ms.sinkhorn_coefficient(1e4, 1.0)) / (1.0 - ms.softmax_coefficient(1e4, 1.0))
    assert ratio == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ms.mean_shift_variance(-1.0, 1.0, 1.0), "t=-1"),
        (lambda: ms.mean_shift_variance(1.0, 0.0, 1.0), "initial=0"),
        (lambda: ms.mean_shift_variance(1.0, 1.0, np.inf), "beta contains inf"),
        (lambda: ms.modulation_growth(-1.0, 1.0), "wave_number=-1"),
        (lambda: ms.local_velocity(0.0, 1.0, 1.0, "softmax"), "density=0"),
        (lambda: ms.local_velocity(1.0, 1.0, 1.0, "layer"), "normalisation='layer'.*none, softmax, sinkhorn"),
        (lambda: ms.local_diffusivity(-1.0, 1.0, "none"), "density=-1"),
        (lambda: ms.sinkhorn_coefficient(0.0, 1.0), "beta=0"),
        (lambda: ms.softmax_coefficient(1.0, -1.0), "variance=-1"),
        (lambda: ms.local_velocity(1.0, 1.0, 1.0, []), r"normalisation=\[\]"),
        (lambda: ms.local_diffusivity(1.0, 1.0, "none", value=[-1.0]), "value has shape"),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
