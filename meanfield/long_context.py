"""One attention layer on n equiangular tokens when beta grows with the context, beta = c ln n.

With every pair at cosine rho, V = I and no skip connection, the outputs have the cosine

    1 - delta^2 g/(1 - (1 - delta^2)(n - 1) g/n),   g = 1 - rho,

which for n -> infinity tends to 1 (c < 1/(1 - rho)), 4 rho/(1 + 3 rho) (c = 1/(1 - rho)) or rho (c > 1/(1 - rho)).
Source: arXiv:2510.05554; docs/theory/dynamics.md 1.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, in_range, token_count
from meanfield.closed_forms import contraction
from meanfield.derivations.long_context import RESULT as FINITE
from meanfield.derivations.long_context_limit import RESULT as LIMIT


def output_cosine(tokens: ArrayLike, beta: ArrayLike, rho: ArrayLike) -> Array:
    """Cosine between two outputs of one attention layer, exact for any n, beta and rho in [0, 1]; broadcast shape.

    ValueError outside n >= 2, beta >= 0, 0 <= rho <= 1.
    """
    n, c = token_count(tokens, least=2.0), _cosine(rho)
    return np.asarray(FINITE.function(1.0 - c, contraction(1.0 - c, beta, n), n))


def critical_scaling(rho: ArrayLike) -> Array:
    """c = 1/(1 - rho), the scale beta = c ln n below which one layer merges all tokens.

    Exact for n -> infinity. ValueError unless 0 <= rho < 1.
    """
    return 1.0 / (1.0 - _below_one(rho))


def limiting_cosine(scaling: ArrayLike, rho: ArrayLike) -> Array:
    """Limit of `output_cosine` for n -> infinity at beta = c ln n; broadcast shape.

    1 below the critical scaling, 4 rho/(1 + 3 rho) at it (within rounding), rho above. The approach is slow near it:
    the own weight moves from 0 to 1 over |c (1 - rho) - 1| ~ 1/ln n. ValueError unless c >= 0 and 0 <= rho < 1.
    """
    c = in_range("scaling", scaling, 0.0, remedy="beta = c ln n with c >= 0")
    cosine = _below_one(rho)
    excess = c * (1.0 - cosine) - 1.0
    excess = np.where(np.abs(excess) < 1e-12, 0.0, excess)
    weight = np.heaviside(excess, 0.5)
    # rho/(rho + 0) is 1 also in the limit rho -> 0.
    return np.where(excess < 0.0, 1.0, LIMIT.function(np.where(excess < 0.0, 1.0, cosine), weight))


def _cosine(rho: ArrayLike) -> Array:
    return in_range("rho", rho, 0.0, 1.0, remedy="give the common cosine of the tokens")


def _below_one(rho: ArrayLike) -> Array:
    value = _cosine(rho)
    if np.any(value == 1.0):
        raise ValueError("rho=1: the tokens have already merged; give rho < 1")
    return value
