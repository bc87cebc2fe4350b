"""Softmax attention against a weighted empirical measure in float64, and what follows without forming the matrix.

A key of mass m counts as m equal keys. With Z_i = sum_j m_j e^{scale q_i.k_j} the weights are
A_ij = m_j e^{scale q_i.k_j}/Z_i, and lse_i = ln Z_i. Everything here is exact to rounding; logits exist only for one
block of queries and keys at a time, so memory is linear in the numbers of queries and keys.
Source: docs/theory/matrix_free.md.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from meanfield._checks import Array, count, finite, in_range, scalar

_WHOLE = "give a whole number of at least 1"

BLOCK = 256
"""Rows and columns of a block of logits: 512 KiB in float64, the size of a second-level cache."""

LARGEST_EXPONENT = {np.dtype(np.float64): 300.0, np.dtype(np.float32): 30.0}
"""Logits up to this size are exponentiated as they are: e^300 and e^-300 leave room for sums of 1e8 terms."""

LARGEST_ENTROPY_ERROR = 1e-3
"""Rounding of an entropy, in nats, beyond which it is refused."""


def attend(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    log_mass: ArrayLike | None = None,
    scale: float = 1.0,
    block: int = BLOCK,
    workers: int = 1,
    dtype: DTypeLike = np.float64,
) -> tuple[NDArray, NDArray]:
    """Attention of queries against a measure of keys: out_i = sum_j A_ij v_j and lse_i = ln Z_i.

    q: (n, d), k: (N, d), v: (N, e), log_mass: (N,) or None for unit masses -> out (n, e), lse (n,). Blocks of `block`
    queries by `block` keys with a running maximum, spread over `workers` threads. `dtype`
    float32 halves the memory and doubles the speed at 1e-6 of accuracy. ValueError on mismatched shapes, non-finite
    entries, logits or sums of values that leave the range of `dtype`, or block or workers below 1.
    """
    q, k, v, log_mass, _ = _checked(q, k, v, log_mass, scale, dtype)
    block = count("block", block, least=1, remedy=_WHOLE)
    out, lse = np.empty((len(q), v.shape[1]), q.dtype), np.empty(len(q), q.dtype)

    def rows(start: int) -> None:
        mine = slice(start, start + block)
        queries = q[mine] * q.dtype.type(scale)
        top = np.full(len(queries), -np.inf, q.dtype)
        mass, total = np.zeros_like(top), np.zeros((len(queries), v.shape[1]), q.dtype)
        for first in range(0, len(k), block):
            theirs = slice(first, first + block)
            logits = queries @ k[theirs].T
            if log_mass is not None:
                logits += log_mass[theirs]
            new = np.maximum(top, logits.max(1))
            kept = np.exp(top - new)
            logits -= new[:, None]
            weights = np.exp(logits, out=logits)
            mass = kept * mass + weights.sum(1)
            total *= kept[:, None]
            total += weights @ v[theirs]
            top = new
        out[mine], lse[mine] = total / mass[:, None], top + np.log(mass)

    _spread(rows, range(0, len(q), block), count("workers", workers, least=1, remedy=_WHOLE))
    return out, lse


def attend_symmetric(
    x: ArrayLike,
    v: ArrayLike,
    *,
    log_mass: ArrayLike | None = None,
    scale: float = 1.0,
    block: int = BLOCK,
    workers: int = 1,
    dtype: DTypeLike = np.float64,
) -> tuple[NDArray, NDArray]:
    """Attention of tokens to themselves with Q^T K = scale I: attend(x, x, v), from half of the logits.

    Logits are symmetric, so each block of exponentials serves as itself and as its transpose. The exponentials are
    taken without a maximum; where |scale| max |x|^2, with max |log mass| and |ln max |v|| added, exceeds
    `LARGEST_EXPONENT`, `attend` is called instead. Shapes, errors and exactness as there.
    """
    x, _, v, log_mass, bound = _checked(x, x, v, log_mass, scale, dtype)
    block = count("block", block, least=1, remedy=_WHOLE)
    workers = count("workers", workers, least=1, remedy=_WHOLE)
    values = float(np.abs(v).max(initial=0.0))
    bound += abs(np.log(values)) if values > 0.0 else 0.0
    if bound > LARGEST_EXPONENT[x.dtype]:
        return attend(x, x, v, log_mass=log_mass, scale=scale, block=block, workers=workers, dtype=dtype)
    mass = np.ones(len(x), x.dtype) if log_mass is None else np.exp(log_mass)
    weighted = np.column_stack([mass[:, None] * v, mass])
    scaled = x * x.dtype.type(scale)
    starts = range(0, len(x), block)
    pairs = list(combinations_with_replacement(starts, 2))
    sums = [np.zeros_like(weighted) for _ in range(workers)]

    def share(worker: int) -> None:
        for i, j in pairs[worker::workers]:
            rows, columns = slice(i, i + block), slice(j, j + block)
            kernel = scaled[rows] @ x[columns].T
            np.exp(kernel, out=kernel)
            sums[worker][rows] += kernel @ weighted[columns]
            if i < j:
                sums[worker][columns] += kernel.T @ weighted[rows]

    _spread(share, range(workers), workers)
    total = sum(sums[1:], start=sums[0])
    return total[:, :-1] / total[:, -1:], np.log(total[:, -1])


def attend_naive(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, log_mass: ArrayLike | None = None, scale: float = 1.0
) -> tuple[Array, Array]:
    """Twin of `attend` that forms the whole matrix: for tests and small N. It checks nothing."""
    logits = scale * np.asarray(q) @ np.asarray(k).T + (0.0 if log_mass is None else np.asarray(log_mass))
    top = logits.max(1, keepdims=True)
    weights = np.exp(logits - top)
    mass = weights.sum(1, keepdims=True)
    return weights @ np.asarray(v) / mass, (top + np.log(mass))[:, 0]


def attend_transposed(
    q: ArrayLike,
    k: ArrayLike,
    y: ArrayLike,
    *,
    log_mass: ArrayLike | None = None,
    scale: float = 1.0,
    lse: ArrayLike | None = None,
    **options,
) -> Array:
    """A^T y from one attention with queries and keys exchanged.

        (A^T y)_j = m_j sum_i e^{scale q_i.k_j - lse_i} y_i = m_j e^{lse'_j} out'_j,
        out', lse' = attend(k, q, y, log_mass=-lse)

    y: (n, e) -> (N, e). `lse` of the forward call saves computing it again; `options` go to `attend`. Exact. For users
    who iterate with A and A^T, such as for singular values. ValueError as in `attend`.
    """
    if lse is None:
        lse = _log_sum(q, k, log_mass=log_mass, scale=scale, **options)
    out, backward = attend(k, q, y, log_mass=-np.asarray(lse), scale=scale, **options)
    return np.exp(backward + (0.0 if log_mass is None else np.asarray(log_mass)))[:, None] * out


def effective_keys(
    q: ArrayLike, k: ArrayLike, *, log_mass: ArrayLike | None = None, scale: float = 1.0, **options
) -> Array:
    """Effective number of keys of every row, 1/sum A^2 = exp(2 lse(logits) - lse(2 logits)).

    Shape (n,), in [1, total mass], inf above 1e308; the sum runs over single keys, of which a key of mass m is m equal
    ones. Exact, from two log-sum-exp passes. ValueError as in `attend`, and for masses below 1.
    """
    with np.errstate(over="ignore"):
        return np.exp(log_effective_keys(q, k, log_mass=log_mass, scale=scale, **options))


def log_effective_keys(
    q: ArrayLike, k: ArrayLike, *, log_mass: ArrayLike | None = None, scale: float = 1.0, **options
) -> Array:
    """ln of `effective_keys`, 2 lse(logits) - lse(2 logits), finite for masses of any size; shape (n,), at least 0."""
    _whole_tokens(log_mass)
    once = _log_sum(q, k, log_mass=log_mass, scale=scale, **options)
    twice = _log_sum(q, k, log_mass=log_mass, scale=2.0 * scale, **options)
    return np.maximum(2.0 * once - twice, 0.0)


def frobenius_squared(
    q: ArrayLike, k: ArrayLike, *, log_mass: ArrayLike | None = None, scale: float = 1.0, **options
) -> float:
    """|A|_F^2 = sum_i exp(lse_i(2 logits) - 2 lse_i(logits)), without the matrix.

    Dimensionless, in [n/total mass, n]; a key of mass m is m equal columns. Exact. ValueError as in
    `effective_keys`.
    """
    return float(np.exp(-log_effective_keys(q, k, log_mass=log_mass, scale=scale, **options)).sum())


def row_entropies(
    q: ArrayLike, k: ArrayLike, *, log_mass: ArrayLike | None = None, scale: float = 1.0, **options
) -> Array:
    """Entropy of every row, H_i = lse_i - scale q_i.(A K)_i, from one attention with V = K.

    Shape (n,), nats, in [0, ln total mass]; a key of mass m is m equal keys. Exact up to the cancellation of lse
    against the mean logit, the machine epsilon times the largest logit. ValueError as in `effective_keys`, and where
    that error exceeds `LARGEST_ENTROPY_ERROR`.
    """
    _whole_tokens(log_mass)
    mean_key, lse = attend(q, k, k, log_mass=log_mass, scale=scale, **options)
    logits = abs(scale) * _longest(np.asarray(q)) * _longest(np.asarray(k))
    if logits * np.finfo(lse.dtype).eps > LARGEST_ENTROPY_ERROR:
        raise ValueError(f"logits of up to {logits:g} leave no digits of an entropy in {lse.dtype}; lower the scale")
    return np.maximum(lse - scale * (np.asarray(q) * mean_key).sum(1), 0.0)


def _log_sum(q: ArrayLike, k: ArrayLike, **options) -> Array:
    return attend(q, k, np.empty((len(np.asarray(k)), 0)), **options)[1]


def _whole_tokens(log_mass: ArrayLike | None) -> None:
    if log_mass is not None:
        in_range("log_mass", log_mass, -1e-12, remedy="masses count tokens, at least 1 each; add a constant")


def _longest(x: Array) -> float:
    """Largest |x_i| over the rows, inf only where it leaves float64."""
    largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    if largest == 0.0:
        return 0.0
    scaled = x / largest
    return largest * float(np.sqrt(np.einsum("ij,ij->i", scaled, scaled).max()))


def _checked(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, log_mass: ArrayLike | None, scale: float, dtype: DTypeLike
) -> tuple[NDArray, NDArray, NDArray, NDArray | None, float]:
    """The arguments in `dtype`, and a bound of the absolute logits, log masses included."""
    if np.dtype(dtype) not in LARGEST_EXPONENT:
        raise ValueError(f"dtype={np.dtype(dtype)} is not supported; use float64 or float32")
    scale = scalar("scale", scale, remedy="give the factor of the logits")
    q, k, v = (finite(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    if q.ndim != 2 or k.ndim != 2 or v.ndim != 2 or q.shape[1] != k.shape[1] or len(k) != len(v) or len(k) == 0:
        raise ValueError(
            f"q {q.shape}, k {k.shape}, v {v.shape} do not fit; give (n, d), (N, d) and (N, e) with N >= 1"
        )
    if log_mass is not None:
        log_mass = finite("log_mass", log_mass)
        if log_mass.shape != (len(k),):
            raise ValueError(f"log_mass has shape {log_mass.shape}; give one value per key, ({len(k)},)")
    queries, keys, values = _longest(q), _longest(k), float(np.abs(v).max(initial=0.0))
    bound = abs(scale) * queries * keys + (0.0 if log_mass is None else float(np.abs(log_mass).max()))
    largest = max(bound, abs(scale), queries, keys, abs(scale) * queries, len(k) * values)
    if not largest < 0.1 * float(np.finfo(dtype).max):  # nan too; differences of logits need some room
        raise ValueError(
            f"scale={scale:g}, |q|={queries:g}, |k|={keys:g} and |v|={values:g} leave the range of {np.dtype(dtype)}; "
            "rescale them"
        )
    q, k, v = (np.ascontiguousarray(x, dtype) for x in (q, k, v))
    return q, k, v, None if log_mass is None else log_mass.astype(dtype), bound


def _spread(task, items, workers: int) -> None:
    """Run `task` on every item, over threads (numpy releases the interpreter lock in products and exponentials)."""
    if workers == 1:
        for item in items:
            task(item)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(task, items))
