"""Rotary position encoding of image tokens and what it does to the spectrum of attention.

Logits are q_i . R(p_i)^T R(p_j) k_j with a rotation R(p) of pairs of coordinates: rows of the image turn the first
half of the head dimension, columns the second, with frequencies base^{-2m/(D/2)}, m = 0 .. D/4 - 1 (base 100 in VGGT).
Uniform content on a sphere, independent of position: R(p_i) q_i is again uniform and independent, so the law of the
spectrum is unchanged, exactly. Anisotropic content: rotations average the covariance over each pair of coordinates
(`averaged_covariance`), approximate. Collapsed content (one query, one key): logits still vary with position, by
`position_logits`: a floor for the spread of the rows. Source: docs/theory/spectra.md; RoPE arXiv 2104.09864.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, finite, in_range

BASE = 100.0
"""Base of the frequencies of VGGT's two-dimensional encoding."""


def angles(positions: ArrayLike, dim: int, base: float = BASE) -> Array:
    """Angle in radians of every pair of coordinates: positions (..., 2) in patches (row, column) -> (..., 2, dim/4).

    ValueError unless dim is a positive multiple of 4 and base > 1.
    """
    p = finite("positions", positions)
    if p.ndim == 0 or p.shape[-1] != 2:
        raise ValueError(f"positions have shape {p.shape}; give (..., 2): row and column of each token")
    if dim <= 0 or dim % 4:
        raise ValueError(f"dim={dim} is not a positive multiple of 4; rows and columns each need pairs of coordinates")
    in_range("base", base, 1.0 + 1e-12, remedy="frequencies fall from 1 to about 1/base")
    frequency = float(base) ** (-2.0 * np.arange(dim // 4) / (dim // 2))
    return p[..., None] * frequency


def rotate(vectors: ArrayLike, positions: ArrayLike, base: float = BASE) -> Array:
    """R(p) x: vectors (..., D) turned by `angles` in the planes (m, m + D/4) of each half. Exact, keeps norms."""
    x = finite("vectors", vectors)
    if x.ndim == 0:
        raise ValueError(f"vectors have shape {x.shape}; give (..., D)")
    theta = angles(positions, x.shape[-1], base)
    first, second = np.split(x.reshape(*x.shape[:-1], 2, -1), 2, axis=-1)
    cosine, sine = np.cos(theta), np.sin(theta)
    turned = np.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    return turned.reshape(*turned.shape[:-2], -1)


def averaged_covariance(covariance: ArrayLike, positions: ArrayLike, base: float = BASE) -> Array:
    """Mean over positions of R(p) C R(p)^T, (D, D), positions (n, 2). Exact for the second moment of rotated content.

    For positions that cover all angles a pair (c_a, c_b) becomes ((c_a + c_b)/2, (c_a + c_b)/2) and correlations
    between pairs vanish. Slow frequencies hardly turn within an image and keep their c.
    """
    c = finite("covariance", covariance)
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ValueError(f"covariance has shape {c.shape}; give (D, D)")
    p = np.atleast_2d(finite("positions", positions))
    once = rotate(np.broadcast_to(c, (len(p), *c.shape)), p[:, None, :], base)
    return rotate(once.transpose(0, 2, 1), p[:, None, :], base).mean(0)


def position_logits(query: ArrayLike, key: ArrayLike, positions: ArrayLike, base: float = BASE) -> Array:
    """Logits (n, n) between tokens of one content at positions (n, 2): query and key (D,). Exact.

    Their spread over keys is what remains of attention when all content has collapsed.
    """
    q, k, p = finite("query", query), finite("key", key), finite("positions", positions)
    if q.ndim != 1 or q.shape != k.shape or p.ndim != 2:
        raise ValueError(
            f"query {q.shape}, key {k.shape} and positions {p.shape} do not fit; give (D,), (D,) and (n, 2)"
        )
    q, k = (np.broadcast_to(x, (len(p), len(x))) for x in (q, k))
    return rotate(q, p, base) @ rotate(k, p, base).T


def logit_change_bound(query_norm: ArrayLike, key_norm: ArrayLike, offset: ArrayLike, base: float = BASE) -> Array:
    """Bound |q.R(offset) k - q.k| <= |q||k| max_m 2 |sin(theta_m/2)|, the norm of R - I; angles beyond pi count as pi.

    query_norm, key_norm (...), offset (..., 2) in patches -> (...). The largest frequency is 1: theta is the offset.
    For users who ask how far tokens may lie apart before their order matters. ValueError on other shapes.
    """
    in_range("base", base, 1.0 + 1e-12, remedy="frequencies fall from 1 to about 1/base")
    q = in_range("query_norm", query_norm, 0.0, remedy="a norm is not negative")
    k = in_range("key_norm", key_norm, 0.0, remedy="a norm is not negative")
    p = finite("offset", offset)
    if p.ndim == 0 or p.shape[-1] != 2:
        raise ValueError(f"offset has shape {p.shape}; give (..., 2): rows and columns between the tokens")
    theta = np.minimum(np.abs(p).max(-1), np.pi)
    return q * k * 2.0 * np.sin(0.5 * theta)
