"""Closed forms of token and attention ranks for equiangular and Gaussian measures.

gamma = mean pairwise cosine, g = 1 - gamma the spread, N tokens, d dimensions, s^2 the variance of a row of logits.
Each function returns a dict of float64 arrays in the broadcast shape of its arguments, dimensionless unless said.
Source: docs/theory/notes.md 2.1, 3.1 to 3.5; checked against dense SVD in tests/meanfield/test_closed_forms.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, digamma, xlogy

from meanfield._checks import Array, attractive, finite, in_range, token_count
from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.equiangular_top import RESULT as EQUIANGULAR_TOP
from meanfield.derivations.gaussian_leading import RESULT as GAUSSIAN_LEADING
from meanfield.derivations.gaussian_ratio import RESULT as GAUSSIAN_RATIO
from meanfield.derivations.quarter_circle import RESULT as QUARTER_CIRCLE
from meanfield.derivations.softmax_energy import RESULT as SOFTMAX_ENERGY
from meanfield.derivations.softmax_entropy import RESULT as SOFTMAX_DEFICIT
from meanfield.derivations.token_participation import RESULT as TOKEN_PARTICIPATION

COLLAPSED = 0.01
"""Largest n g at which the leading orders of the collapsed limit are given."""


def equiangular_token_ranks(tokens: ArrayLike, spread: ArrayLike, dim: ArrayLike | None = None) -> dict[str, Array]:
    """Ranks of N unit tokens with every pair at cosine gamma = 1 - g: Gram eigenvalues 1 + (n - 1) gamma, 1 - gamma (n
    - 1 times).

    stable rank n/(1 + (n - 1) gamma), participation ratio n/(1 + (n - 1) gamma^2), effective ranks from the
    eigenvalues, centred = n - 1 (all centred measures). Exact with n = N when `dim` is None (needs d >= N); with `dim`,
    isotropic tokens around their mean and n = 1/(1/N + 1/d): approximate, within about 1/sqrt(N d).
    ValueError when g is outside [0, 1], N < 2 or d < 1.
    """
    n = effective_count(tokens, dim)
    g = in_range("spread", spread, 0.0, 1.0, remedy="g = 1 - mean cosine; negative mean cosines are outside this model")
    top, rest = EQUIANGULAR_TOP.function(n, g), g
    count = n - 1.0
    return {
        "effective_rank": _two_level_rank(np.sqrt(top), np.sqrt(rest), count),
        "effective_rank_energy": _two_level_rank(top, rest, count),
        "stable_rank": n / top,
        "participation_ratio": n / (1.0 + count * (1.0 - g) ** 2),
        "centred": np.broadcast_to(count, top.shape).copy(),
    }


def effective_count(tokens: ArrayLike, dim: ArrayLike | None = None) -> Array:
    """n = 1/(1/N + 1/d), the centred participation ratio of N isotropic tokens in d dimensions; N without `dim`."""
    n = token_count(tokens, least=2.0)
    if dim is None:
        return n
    d = in_range("dim", dim, 1.0, remedy="give the dimension the token cloud spans")
    return np.maximum(1.0 / (1.0 / n + 1.0 / d), 1.0)


def collapsed_token_excess(tokens: ArrayLike, spread: ArrayLike) -> dict[str, Array]:
    """Ranks minus 1 of nearly collapsed equiangular tokens, leading order in g: stable rank g, participation ratio 2g,
    energies g (1 + ln(n/g)), effective rank sqrt(n g) (1 + ln(n/g)/2).

    The last two and n = `tokens` as in `equiangular_token_ranks`. Relative errors of order sqrt(n g) for the effective
    rank, n g for the others, and 1/n. ValueError when g is not positive or n g exceeds COLLAPSED: use
    `equiangular_token_ranks`.
    """
    n = token_count(tokens, least=2.0)
    g = in_range("spread", spread, 1e-300, 1.0, remedy="the spread g is positive")
    if np.any(n * g > COLLAPSED):
        raise ValueError(
            f"n g={np.max(n * g):g} exceeds {COLLAPSED}: not collapsed enough; use equiangular_token_ranks"
        )
    log_ratio = np.log(n) - np.log(g)
    return {
        "stable_rank": g + 0.0 * n,
        "participation_ratio": 2.0 * g + 0.0 * n,
        "effective_rank_energy": g * (1.0 + log_ratio),
        "effective_rank": np.sqrt(n * g) * (1.0 + 0.5 * log_ratio),
    }


def token_participation_ratio(tokens: ArrayLike, mean_squared_cosine: ArrayLike) -> Array:
    """Participation ratio of any N unit tokens from the mean squared cosine q of distinct pairs: 1/PR = 1/N + (1 - 1/N)
    q. Exact. ValueError when q is outside [0, 1] or N < 1."""
    q = in_range("mean_squared_cosine", mean_squared_cosine, 0.0, 1.0, remedy="average cos^2 over distinct pairs")
    return np.asarray(TOKEN_PARTICIPATION.function(token_count(tokens), q))


def contraction(spread: ArrayLike, beta: ArrayLike, tokens: ArrayLike) -> Array:
    """delta = (1 - e^{-beta g})/(1 + (N - 1) e^{-beta g}), second eigenvalue of attention between equiangular tokens.

    Exact; in [0, 1). beta is the logit of a token with itself, N the number of tokens. ValueError outside g in [0, 2],
    beta >= 0.
    """
    g = in_range("spread", spread, 0.0, 2.0, remedy="g = 1 - cosine")
    b = attractive(beta)
    return np.asarray(CONTRACTION.function(g, b, token_count(tokens)))


def equiangular_attention_ranks(tokens: ArrayLike, spread: ArrayLike, beta: ArrayLike) -> dict[str, Array]:
    """Ranks of attention between equiangular tokens: singular values 1 and delta (N - 1 times), see `contraction`.
    Exact."""
    n = token_count(tokens, least=2.0)
    delta = contraction(spread, beta, n)
    one = np.ones_like(delta)
    return {
        "effective_rank": _two_level_rank(one, delta, n - 1.0),
        "effective_rank_energy": _two_level_rank(one, delta**2, n - 1.0),
        "stable_rank": 1.0 + (n - 1.0) * delta**2,
        "participation_ratio": (1.0 + (n - 1.0) * delta**2) ** 2 / (1.0 + (n - 1.0) * delta**4),
    }


def gaussian_logit_ranks(tokens: ArrayLike, logit_variance: ArrayLike) -> dict[str, Array]:
    """Softmax of Gaussian logits of row variance s^2: entropy ln N - s^2/2 (nats), Renyi-2 entropy ln N - s^2, |A|_F^2
    = e^{s^2}.

    stable_rank = e^{s^2} (leading singular value 1). For i.i.d. logits also second_singular_value 2 sqrt((e^{s^2} -
    1)/N), participation_ratio e^{2 s^2}/(1 + 2 (e^{s^2} - 1)^2/N) and the effective ranks of a quarter-circle bulk;
    structured logits (q.k in few dimensions) share only the first four. Limit of large N, where the second moments hold
    for s^2 < ln(N)/2; the ranks are cut at N, which a small N near that limit reaches. ValueError beyond ln(N)/2, where
    single keys carry the second moments (`condensed`): `meanfield.row_statistics` has entropies of such rows.
    """
    n = token_count(tokens, least=2.0)
    s2 = in_range("logit_variance", logit_variance, 0.0, remedy="a variance is not negative")
    limit = 0.5 * np.log(n)
    if np.any(s2 > limit):
        worst = np.broadcast_to(s2, np.broadcast(s2, n).shape)[s2 > limit].flat[0]
        raise ValueError(
            f"logit_variance={worst:g} exceeds ln(N)/2={np.min(limit):.4g}: single keys carry the second moments; use "
            "measured singular values (meanfield.extrapolation), and meanfield.row_statistics for the entropy"
        )
    bulk, energy = np.expm1(s2), SOFTMAX_ENERGY.function(s2)
    nuclear = QUARTER_CIRCLE.function(n, bulk)
    total = 1.0 + nuclear
    log_bulk_sum = nuclear * np.log(_QUARTER * n) - xlogy(nuclear, nuclear)
    log_energy_sum = bulk * np.log(_QUARTER_ENERGY * n) - xlogy(bulk, bulk)
    return {
        "entropy": np.log(n) - SOFTMAX_DEFICIT.function(s2),
        "renyi2_entropy": np.log(n) - s2,
        "frobenius": np.sqrt(energy),
        "stable_rank": energy,
        "second_singular_value": 2.0 * np.sqrt(bulk / n),
        "participation_ratio": energy**2 / (1.0 + 2.0 * bulk**2 / n),
        "effective_rank": np.minimum(np.exp(np.log(total) + log_bulk_sum / total), n),
        "effective_rank_energy": np.minimum(np.exp(np.log(energy) + log_energy_sum / energy), n),
    }


def gaussian_qk_ranks(covariance_eigenvalues: ArrayLike, query_mean: ArrayLike = 0.0) -> dict[str, Array]:
    """Softmax attention between Gaussian queries and keys in the limit N -> infinity, from the c_a of one head.

    Keys whitened, y ~ N(0, I); queries z = Sigma_k^{1/2} q / sqrt(d_h) ~ N(m, diag c). With c_a = r_a/(1 + r_a^2) the
    squared singular values are prod_a lambda_a r_a^{n_a}, lambda_a = (1 + r_a^2)^{1/2} e^{m_a^2/(1 - 2 c_a)}:
    leading_singular_value sqrt(prod lambda_a), stable_rank prod 1/(1 - r_a), participation_ratio
    prod (1 + r_a)/(1 - r_a), effective ranks in closed form. The query mean m (a sink) tilts all rows alike: it
    multiplies every singular value by e^{m^2/(2(1 - 2c))} and leaves the ranks. Shapes: (..., D), query_mean broadcast
    to it -> (...). Exact at N = infinity; at N tokens the effective ranks are far lower (`meanfield.gaussian_spectrum`)
    and the tilt saturates when e^{|m|^2} reaches N: N e^{-|m|^2} keys carry it. ValueError unless 0 <= c_a < 1/2.
    """
    c = finite("covariance_eigenvalues", covariance_eigenvalues)
    if c.ndim == 0 or c.shape[-1] == 0:
        raise ValueError(f"covariance_eigenvalues has shape {c.shape}; the last axis runs over the head dimension")
    if np.any((c < 0.0) | (c >= 0.5)):
        worst = c[(c < 0.0) | (c >= 0.5)].flat[0]
        raise ValueError(
            f"covariance_eigenvalues contains {worst:g}, outside [0, 1/2): the second moments diverge; "
            "use measured singular values (meanfield.extrapolation)"
        )
    r = GAUSSIAN_RATIO.function(c)
    leading = GAUSSIAN_LEADING.function(r, finite("query_mean", query_mean) + np.zeros_like(c))
    stable = (1.0 / (1.0 - r)).prod(-1)
    top = np.sqrt(leading.prod(-1))
    return {
        "leading_singular_value": top,
        "stable_rank": stable,
        "participation_ratio": ((1.0 + r) / (1.0 - r)).prod(-1),
        "effective_rank": np.exp(_geometric_entropy(np.sqrt(r)).sum(-1)),
        "effective_rank_energy": np.exp(_geometric_entropy(r).sum(-1)),
        "frobenius": top * np.sqrt(stable),
    }


def _geometric_entropy(p: Array) -> Array:
    """Entropy of weights proportional to p^n, n = 0, 1, ..."""
    return -np.log1p(-p) - xlogy(p, p) / (1.0 - p)


def _two_level_rank(top: Array, rest: Array, count: Array) -> Array:
    """exp of the entropy of weights proportional to `top` once and `rest` `count` times."""
    total = top + count * rest
    return np.exp(np.log(total) - (xlogy(top, top) + count * xlogy(rest, rest)) / total)


def _quarter_circle_factor(power: float) -> float:
    """erank/n of n quarter-circle values to the given power: exp(ln E x^p - p E[x^p ln x]/E x^p) on [0, 2].

    E x^p = (2^{p+1}/pi) B((p + 1)/2, 3/2).
    """
    log_mean = (power + 1.0) * np.log(2.0) - np.log(np.pi) + betaln((power + 1.0) / 2.0, 1.5)
    slope = np.log(2.0) + 0.5 * (digamma((power + 1.0) / 2.0) - digamma((power + 4.0) / 2.0))
    return float(np.exp(log_mean - power * slope))


_QUARTER = _quarter_circle_factor(1.0)
_QUARTER_ENERGY = _quarter_circle_factor(2.0)
