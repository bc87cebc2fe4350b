"""Self-attention between Gaussian tokens x ~ N(0, diag lambda) at N = infinity: Mehler's formula in closed form.

Dot-product logits beta x.y: eigenvalues prod (beta lambda_i)^{k_i}. Gaussian-kernel logits -beta |x - y|^2/2:
eigenvalues prod a_i^{k_i}, a_i = beta lambda_i/(1 + beta lambda_i). The matrices are not symmetric: |A|_F^2 is a sum
over singular values, not eigenvalues. Source: docs/theory/spectra.md, 3.4; each formula is derived in
meanfield/derivations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, in_range
from meanfield.derivations.kernel_eigenvalue import RESULT as KERNEL_EIGENVALUE
from meanfield.derivations.kernel_frobenius import RESULT as KERNEL_FROBENIUS
from meanfield.derivations.mehler_frobenius import RESULT as DOT_FROBENIUS


def dot_product_attention(beta: ArrayLike, variances: ArrayLike) -> dict[str, Array]:
    """Dot-product self-attention: variances (..., D) -> the largest eigenvalue after 1, max beta lambda, and frobenius
    (norm), prod (1 - 2 beta^2 lambda^2)^{-1/4}. Exact at N = infinity.

    ValueError when 2 beta^2 lambda^2 >= 1 (rows condense), a variance or beta is negative.
    """
    h = _strengths(beta, variances)
    if np.any(2.0 * h**2 >= 1.0):
        raise ValueError(
            f"beta lambda={h.max():g} reaches 1/sqrt(2): |A|_F diverges at N = infinity; lower beta or use measured "
            "singular values (meanfield.extrapolation)"
        )
    return {"second_eigenvalue": h.max(-1), "frobenius": np.sqrt(DOT_FROBENIUS.function(h).prod(-1))}


def gaussian_kernel_attention(beta: ArrayLike, variances: ArrayLike) -> dict[str, Array]:
    """Gaussian-kernel self-attention: variances (..., D) -> second_eigenvalue max a, gap 1 - max a, trace
    prod (1 + beta lambda) and frobenius (norm). Exact at N = infinity. ValueError on negative beta or variances."""
    h = _strengths(beta, variances)
    a = KERNEL_EIGENVALUE.function(h)
    return {
        "second_eigenvalue": a.max(-1),
        "gap": 1.0 - a.max(-1),
        "trace": (1.0 / (1.0 - a)).prod(-1),
        "frobenius": np.sqrt(KERNEL_FROBENIUS.function(h).prod(-1)),
    }


def product_eigenvalues(factors: ArrayLike, count: int) -> Array:
    """The `count` largest of prod_i f_i^{k_i}, k_i = 0, 1, ..., descending; factors (D,) in [0, 1). Exact."""
    f = in_range("factors", factors, 0.0, 1.0 - 1e-12, remedy="beta lambda or a must be below 1")
    values = np.ones(1)
    for factor in f.ravel():
        values = np.outer(values, factor ** np.arange(count)).ravel()
        values = np.sort(values)[::-1][:count]
    return values


def _strengths(beta: ArrayLike, variances: ArrayLike) -> Array:
    b = in_range("beta", beta, 0.0, remedy="repulsive logits are outside these formulas")
    v = in_range("variances", variances, 0.0, remedy="a variance is not negative")
    if v.ndim == 0 or v.shape[-1] == 0:
        raise ValueError(f"variances has shape {v.shape}; the last axis runs over the dimensions")
    return np.asarray(finite("beta", b)[..., None] * v)
