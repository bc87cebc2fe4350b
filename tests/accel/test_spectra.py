"""Matrix-free spectra against dense float64 linear algebra, closed forms, and their own standard errors."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from accel.errors import AccelError
from accel.krylov import AttentionOperator
from accel.patch import patch
from accel.policies.subsample import Subsample
from accel.provenance import provenance
from accel.spectra import attention_spectrum, measure_spectra, row_statistics
from tests.accel.stand_ins import Plan, TwoFold, cloud
from tests.tolerances import (
    MATVEC_FLOAT32,
    QUADRATURE_BIAS,
    ROW_STATISTICS,
    SE_CALIBRATION,
    SIGMAS,
    SINGULAR_VALUES,
    SINGULAR_VALUES_IN_FEW_STEPS,
    TYPICAL_SE,
)

KINDS = ("sphere", "sharp", "collapsed", "scene")
STOCHASTIC = ("participation_ratio", "effective_rank", "effective_rank_energy")
SCALARS = (*STOCHASTIC, "frobenius", "stable_rank", "entropy")


def seed(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def matrix(q, k, scale=None):
    """A in numpy float64, (H, N, N)."""
    q, k = q.double().numpy(), k.double().numpy()
    logits = q @ k.transpose(0, 2, 1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def ranks(s):
    p, e = s / s.sum(), s**2 / (s**2).sum()
    return {
        "participation_ratio": 1 / (e**2).sum(),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "effective_rank_energy": np.exp(-(e * np.log(e)).sum()),
        "frobenius": np.sqrt((s**2).sum()),
        "stable_rank": (s**2).sum() / s[0] ** 2,
    }


@pytest.mark.parametrize("columns", [7, 64, 100])
def test_products_are_a_x_and_a_transposed_y(columns):
    """Widths below, at and above the chunk; queries and keys differ, so that a transpose cannot hide."""
    pairs = [cloud("sharp", 150, 24, seed(n)) for n in (0, 1)]
    q, k = (torch.cat(x) for x in zip(*pairs, strict=True))
    operator, A = AttentionOperator(q, k, 0.3, 64), matrix(q, k, 0.3)
    x = torch.randn(2, 150, columns, generator=seed(2))
    for product, exact in ((operator.apply, A), (operator.adjoint, A.transpose(0, 2, 1))):
        expected = exact @ x.double().numpy()
        assert np.linalg.norm(product(x).numpy() - expected) < MATVEC_FLOAT32 * np.linalg.norm(expected)
    chunks = -(-columns // 64)
    assert operator.products == 2 * chunks and operator.forwards == 2 * chunks * 64 / 24


def test_row_statistics_are_exact():
    q, k = cloud("sharp", 150, 24, seed(0))
    A, rows = matrix(q, k, 0.3), row_statistics(q, k, scale=0.3)
    for found, expected in (
        (rows.entropy, -(A * np.log(A)).sum(-1)),
        (rows.n_eff, 1 / (A**2).sum(-1)),
        (rows.frobenius, np.linalg.norm(A, axis=(1, 2))),
    ):
        np.testing.assert_allclose(found.numpy(), expected, rtol=ROW_STATISTICS)


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_free_agrees_with_the_dense_svd(kind):
    q, k = cloud(kind, 600, 32, seed(7))
    A = matrix(q, k)[0]
    s = np.linalg.svd(A, compute_uv=False)
    exact = ranks(s) | {"entropy": -(A * np.log(A)).sum(-1).mean()}
    free = attention_spectrum(q, k, generator=seed(1)).isel(head=0)
    np.testing.assert_allclose(free.singular_value, s[:10], rtol=SINGULAR_VALUES)
    nearest = np.abs(s[None] - free.singular_value.values[:, None]).min(-1)
    assert (nearest <= free.singular_value_residual.values + SINGULAR_VALUES * s[:10]).all()
    for name in ("frobenius", "stable_rank", "entropy"):
        np.testing.assert_allclose(free[name], exact[name], rtol=SINGULAR_VALUES)
        assert free[f"{name}_se"] == 0
    for name in STOCHASTIC:
        error, se = abs(float(free[name]) - exact[name]), float(free[f"{name}_se"])
        assert error < SIGMAS * se, (name, error / se)
        assert se < TYPICAL_SE * exact[name], name
    twin = attention_spectrum(q, k, generator=seed(1), method="dense").isel(head=0)
    for name, value in exact.items():
        np.testing.assert_allclose(twin[name], value, rtol=ROW_STATISTICS)
        assert twin[f"{name}_se"] == 0
    np.testing.assert_allclose(twin.singular_value, s[:10], rtol=ROW_STATISTICS)


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_values_cost_at_most_twelve_forwards(kind):
    q, k = cloud(kind, 600, 64, seed(7))
    exact = np.linalg.svd(matrix(q, k)[0], compute_uv=False)[:16]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def flops(q, k, v, *args, out_shape=None, **kwargs):
        return 4 * q[0] * q[1] * q[2] * k[2] * q[3]

    with FlopCounterMode(display=False, custom_mapping={kernel: flops}) as counter:
        found = attention_spectrum(q, k, generator=seed(1), count=16, ranks=False)
    counted = counter.get_flop_counts()["Global"][kernel] / (4 * 600**2 * 64)
    assert found.attention_forwards == counted == 11
    s = found.singular_value.values[0]
    np.testing.assert_allclose(s, exact, rtol=SINGULAR_VALUES_IN_FEW_STEPS)
    assert (np.abs(s - exact) <= found.singular_value_se.values[0] + SINGULAR_VALUES * exact[0]).all()
    assert set(found.data_vars) == {"singular_value", "singular_value_se", "singular_value_residual"}


def test_the_declared_error_of_few_steps_is_not_optimistic():
    q, k = cloud("sharp", 600, 64, seed(7))
    exact = np.linalg.svd(matrix(q, k)[0], compute_uv=False)[:16]
    for iterations in (0, 1, 2):
        found = attention_spectrum(q, k, generator=seed(1), count=16, ranks=False, iterations=iterations).isel(head=0)
        error = exact - found.singular_value.values
        assert error.max() > 10 * SINGULAR_VALUES * exact[0]  # not converged yet
        assert (error <= found.singular_value_se.values + SINGULAR_VALUES * exact[0]).all()


def test_gauss_and_radau_together_remove_the_bias_of_few_steps():
    """16 steps: Gauss alone is 2.4 % high, Radau alone 4.6 % low; 256 probes leave a standard error of .2 %."""
    q, k = cloud("scene", 600, 32, seed(7))
    exact = ranks(np.linalg.svd(matrix(q, k)[0], compute_uv=False))["effective_rank"]
    found = float(attention_spectrum(q, k, generator=seed(3), steps=16, probes=256).effective_rank[0])
    assert abs(found / exact - 1) < QUADRATURE_BIAS


def test_standard_errors_are_those_of_repetition():
    q, k = cloud("sphere", 200, 16, seed(4))
    heads = 40  # the same head forty times: forty independent draws
    draws = attention_spectrum(
        q.expand(heads, -1, -1), k.expand(heads, -1, -1), generator=seed(5), probes=8, deflate=4, steps=12
    )
    for name in STOCHASTIC:
        ratio = float(draws[f"{name}_se"].mean()) / float(draws[name].std(ddof=1))
        assert 1 / SE_CALIBRATION < ratio < SE_CALIBRATION, (name, ratio)


@pytest.mark.parametrize("tokens", [2, 12, 48, 130])
def test_equiangular_tokens_have_the_closed_form_spectrum(tokens):
    """s = 1, delta (N-1 times), delta = (1 - e^-x)/(1 + (N-1) e^-x), x = beta (1 - cosine); N around a block."""
    cosine, beta = 0.4, 6.0
    gram = (1 - cosine) * np.eye(tokens) + cosine
    q = torch.as_tensor(np.linalg.cholesky(gram))[None]
    decay = np.exp(-beta * (1 - cosine))
    s = np.full(tokens, (1 - decay) / (1 + (tokens - 1) * decay))
    s[0] = 1
    found = attention_spectrum(q, q, scale=beta, count=2, generator=seed(6), dtype=torch.float64).isel(head=0)
    np.testing.assert_allclose(found.singular_value, s[:2], rtol=ROW_STATISTICS)
    for name, value in ranks(s).items():
        np.testing.assert_allclose(found[name], value, rtol=ROW_STATISTICS)


def test_low_precision_inputs_are_upcast_before_anything_else():
    q, k = (x.bfloat16() for x in cloud("scene", 150, 16, seed(0)))
    low = attention_spectrum(q, k, generator=seed(1), probes=4, steps=4)
    xr.testing.assert_identical(low, attention_spectrum(q.float(), k.float(), generator=seed(1), probes=4, steps=4))


def test_no_n_by_n_matrix_is_formed():
    largest = [0]

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest[0] = max(largest[0], x.numel())
            return out

    tokens = 1300
    q, k = cloud("sphere", tokens, 16, seed(0))
    with Largest():
        attention_spectrum(q, k, generator=seed(1), probes=4, steps=4, method="auto")
    assert 0 < largest[0] < tokens**2 / 2


def test_auto_is_dense_for_small_n():
    q, k = cloud("sphere", 100, 16, seed(0))
    assert attention_spectrum(q, k, generator=seed(1), method="auto").method == "dense"
    assert attention_spectrum(q, k, generator=seed(1), probes=2, steps=2).method == "matrix-free"


def test_bad_input_is_named():
    q, k = cloud("sphere", 20, 16, seed(0))
    with pytest.raises(AccelError, match="NaN"):
        attention_spectrum(q * float("nan"), k, generator=seed(1))
    with pytest.raises(AccelError, match="30 singular values asked of a matrix with N=20"):
        attention_spectrum(q, k, generator=seed(1), count=30)
    with pytest.raises(AccelError, match='method="magic"'):
        attention_spectrum(q, k, generator=seed(1), method="magic")
    with pytest.raises(AccelError, match=r"\(heads, tokens, dim\)"):
        attention_spectrum(q[0], k[0], generator=seed(1))
    with pytest.raises(AccelError, match="probes=1"):
        attention_spectrum(q, k, generator=seed(1), probes=1)


@pytest.fixture
def model():
    return TwoFold(seed(0))


@pytest.fixture
def images():
    return torch.rand(1, 3, 3, 16, 24, generator=seed(1))


def test_measure_spectra_is_the_schema_and_the_truth(model, images, tmp_path, capfd):
    before = torch.get_rng_state()
    free = measure_spectra(model, images, k=4, generator=seed(2), progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
    dense = measure_spectra(model, images, k=4, generator=seed(2), method="dense")
    out, err = capfd.readouterr()
    assert out == "" and "6/6" in err
    assert free.singular_value.dims == ("layer", "head", "k") and free.singular_value.shape == (3, 2, 4)
    np.testing.assert_allclose(free.singular_value, dense.singular_value, rtol=SINGULAR_VALUES)
    for name in SCALARS:
        assert free[name].dims == free[f"{name}_se"].dims == ("layer", "head")
        bound = SIGMAS * free[f"{name}_se"] + SINGULAR_VALUES * dense[name]
        assert (abs(free[name] - dense[name]) <= bound).all(), name
    assert all({"long_name", "units"} <= set(data.attrs) for data in free.variables.values())
    expected = {"tokens": 75, "frames": 3, "device": "cpu", "dtype": "float32", "seed": 2, "method": "matrix-free"}
    assert expected.items() <= free.attrs.items() and {"git_revision", "versions"} <= free.attrs.keys()
    free.to_netcdf(tmp_path / "spectra.nc", engine="scipy")
    xr.testing.assert_allclose(xr.load_dataset(tmp_path / "spectra.nc", engine="scipy"), free, rtol=0)
    xr.testing.assert_identical(free, measure_spectra(model, images, k=4, generator=seed(2), progress=False))


def test_measure_spectra_inside_a_patch_measures_the_patched_model(model, images):
    def measured():
        return measure_spectra(model, images, generator=seed(2), probes=4, steps=4, progress=False)

    plain = measured()
    with patch(model, Plan(model.layout(images), (Subsample(stride=4),) * 3)) as applied:
        patched = measured()
    assert applied.calls == [1, 1, 1]
    first, later = patched.isel(layer=0), patched.isel(layer=2)
    xr.testing.assert_equal(first, plain.isel(layer=0))  # its q and k come before any accelerated layer
    assert (later.entropy != plain.entropy.isel(layer=2)).all()


def test_measure_spectra_names_the_layer_of_a_nan_and_refuses_batches(model, images):
    with pytest.raises(AccelError, match=r"\(1, frames, 3, height, width\)"):
        measure_spectra(model, images.expand(2, -1, -1, -1, -1), generator=seed(2))
    with torch.no_grad():
        model.aggregator.frame_blocks[1].attn.proj.bias[0] = float("nan")
    with pytest.raises(AccelError, match="layer 1: q or k holds NaN"):
        measure_spectra(model, images, generator=seed(2), method="dense", progress=False)


def test_provenance_names_the_dtype_without_torch():
    assert json.dumps(provenance(dtype=torch.float32, seed=3)) and provenance(dtype=torch.float32)["dtype"] == "float32"
    assert "torch" in provenance()["versions"]
