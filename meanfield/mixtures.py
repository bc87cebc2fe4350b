"""The finite-N law for tokens that fall into classes: clusters of directions, or shells of equal norm.

Queries come in classes r with shares p_r, keys in classes s with shares q_s, and given the classes the kernel N A is a
sum over modes k of a matrix K_k(r, s), each with m_k pairs of independent features of unit variance (directions). With

    W_k = diag(p a)^{1/2} K_k diag(q b)^{1/2},    L_k = v W_k W_k^T (1 + v W_k W_k^T)^{-1},

the law is a fixed point for the two sets of leverages and the resolvent T_N(v) = sum_k v s_k^2/(1 + v s_k^2) follows:

    N p_r (1 - a_r) = sum_k m_k (L_k)_rr,   N q_s (1 - b_s) = the same for the keys,   T_N = sum_r N p_r (1 - a_r).

One class gives back v = w/(1 - P/N)^2 of `meanfield.finite_n`; heavy tails stretch v by m(theta) as there. Singular
values that no class mixes are exact in number: a class of one token never counts for more than one singular value,
which bounds what norms add to the tails.
Source: docs/theory/spectra.md (deterministic equivalent of a sample covariance with a variance profile). Approximate:
within a class the features count as independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from meanfield._checks import Array, finite, in_range, token_count
from meanfield.sphere import log_moment, sphere_spectrum

STEP = 0.6
"""Spacing of the grid in ln v."""
START = -9.0
"""Where the grid starts, as ln(v sigma_1^2)."""
TAIL = 3e-4
"""The grid ends where the rest carries less than this share of sum s, or the rank is within this share of N."""
TOLERANCE = 1e-5
"""Change of ln a and ln b at which the fixed point counts as found."""
MAX_ITERATIONS = 3000


@dataclass(frozen=True, eq=False)
class MixtureLaw:
    """The law for classes of queries and keys; see the module.

    query_share (A,) and key_share (B,) sum to 1, kernels (M, A, B), multiplicity (M,) positive, 1 for the first
    mode, whose kernel holds the leading singular value (kept apart, see `meanfield.finite_n`); heavy_tail = (c_1, c_2)
    of ln m(theta), see `meanfield.condensation`. ValueError on other shapes, shares or non-finite entries.
    """

    query_share: Array
    key_share: Array
    kernels: Array
    multiplicity: Array
    heavy_tail: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("query_share", "key_share", "kernels", "multiplicity", "heavy_tail"):
            object.__setattr__(self, name, finite(name, getattr(self, name)))
        p, q, kernels, mult = self.query_share, self.key_share, self.kernels, self.multiplicity
        if p.ndim != 1 or q.ndim != 1 or kernels.shape != (*mult.shape, p.size, q.size):
            raise ValueError(
                f"kernels {kernels.shape} do not match shares {p.shape}, {q.shape} and multiplicities {mult.shape}; "
                "give (modes, query classes, key classes)"
            )
        for name, share in (("query_share", p), ("key_share", q)):
            if share.min() <= 0.0 or abs(share.sum() - 1.0) > 1e-9:
                raise ValueError(f"{name} sums to {share.sum():g}; give positive shares that sum to 1")
        if mult.min() <= 0.0 or mult[0] != 1.0:
            raise ValueError(f"multiplicity {mult} must be positive and begin with 1, the mode of the constants")

    @property
    def weighted(self) -> Array:
        """p^{1/2} K_k q^{1/2}, whose singular values are the population's."""
        return np.sqrt(self.query_share)[:, None] * self.kernels * np.sqrt(self.key_share)

    @cached_property
    def random(self) -> Array:
        """`weighted` less the leading pair of the first kernel, which is no random feature."""
        u, sigma, v = np.linalg.svd(self.weighted[0], full_matrices=False)
        return np.concatenate([((u[:, 1:] * sigma[1:]) @ v[1:])[None], self.weighted[1:]])

    @property
    def top(self) -> float:
        """The leading singular value of the population."""
        return float(np.linalg.norm(self.weighted[0], 2))

    def population(self) -> tuple[Array, Array]:
        """Population singular values, descending, and their multiplicities, those above 1e-12 of the first."""
        sigma = np.linalg.svd(self.weighted, compute_uv=False)
        mult = np.broadcast_to(self.multiplicity[:, None], sigma.shape)
        order = np.argsort(sigma.ravel())[::-1]
        sigma, mult = sigma.ravel()[order], mult.ravel()[order]
        keep = sigma > 1e-12 * sigma[0]
        return sigma[keep], mult[keep]

    def ranks(self, tokens: float) -> dict[str, float]:
        """Rank measures at N tokens: those of `meanfield.ranks`, frobenius (norm) and nuclear.

        sum s = (1/pi) int v^{-1/2} T dln v, sum s ln s = -(1/2 pi) int v^{-1/2} T ln v dln v, sum s^4 to first order
        in v, the leading mode apart. ValueError when N is below 2 or not finite, or when the fixed point is not found.
        """
        n, top = float(token_count(tokens, least=2.0)), self.top
        energies = np.einsum("k,krs->rs", self.multiplicity, self.random**2)
        bulk = energies.sum()
        energy = bulk + top**2
        log_v, t = self.resolvent(n)
        c1, c2 = self.heavy_tail
        log_v = log_v + c1 * t / n + c2 * (t / n) ** 2
        y = np.exp(-0.5 * log_v) * t
        nuclear = (np.trapezoid(y, log_v) + 2.0 * y[0] + 2.0 * y[-1]) / np.pi + top
        ends = 2.0 * y[0] * (log_v[0] - 2.0) + 2.0 * y[-1] * (log_v[-1] + 2.0)
        log_sum = top * np.log(top) - (np.trapezoid(y * log_v, log_v) + ends) / (2.0 * np.pi)
        h = np.minimum(t / (np.exp(log_v) * bulk), 1.0)
        middle = 0.5 * (log_v[1:] + log_v[:-1])
        mean_log = middle @ np.diff(h) - log_v[0] * (1.0 - h[0]) - h[-1] * (log_v[-1] + 1.0)
        energy_log_sum = bulk * mean_log + top**2 * np.log(top**2)
        quartic = top**4 + self.row_quartic(n) + (energies.sum(0) ** 2 / self.key_share).sum() / n
        return {
            "effective_rank": float(min(np.exp(np.log(nuclear) - log_sum / nuclear), n)),
            "effective_rank_energy": float(min(np.exp(np.log(energy) - energy_log_sum / energy), n)),
            "stable_rank": float(min(energy / top**2, n)),
            "participation_ratio": float(min(energy**2 / quartic, n)),
            "frobenius": float(np.sqrt(energy)),
            "nuclear": float(nuclear),
        }

    def row_quartic(self, tokens: float) -> float:
        """sum s^4 to first order in 1/N without the leading mode and without what the sampling of keys adds."""
        gram = self.random @ self.random.transpose(0, 2, 1)
        energies = np.einsum("k,krs->rs", self.multiplicity, self.random**2)
        rows = (energies.sum(1) ** 2 / self.query_share).sum() + self.heavy_tail[0] * energies.sum() ** 2
        return float(self.multiplicity @ (gram**2).sum((1, 2)) + rows / tokens)

    def resolvent(self, tokens: float) -> tuple[Array, Array]:
        """Grid of ln(v/m) and T_N(v) on it, the leading mode apart, by fixed-point iteration continued in v."""
        n = float(token_count(tokens, least=2.0))
        log_a, log_b = np.zeros(self.query_share.size), np.zeros(self.key_share.size)
        before_a, before_b = log_a, log_b
        log_v, grid, values, total = START - 2.0 * np.log(self.top), [], [], 0.0
        while True:
            guess = np.minimum(2.0 * log_a - before_a, 0.0), np.minimum(2.0 * log_b - before_b, 0.0)
            before_a, before_b = log_a, log_b
            log_a, log_b, t = self._fixed_point(log_v, n, *guess)
            grid.append(log_v)
            values.append(t)
            share = np.exp(-0.5 * log_v) * t
            total += STEP * share
            if 2.0 * share < TAIL * total or t > (1.0 - TAIL) * n:
                return np.array(grid), np.array(values)
            log_v += STEP

    def _fixed_point(self, log_v: float, n: float, log_a: Array, log_b: Array) -> tuple[Array, Array, float]:
        root_v, p, q = np.exp(0.5 * log_v), self.query_share, self.key_share
        random, identity = self.random, np.eye(p.size)
        for _ in range(MAX_ITERATIONS):
            a, b = np.exp(log_a), np.exp(log_b)
            w = root_v * np.sqrt(a)[:, None] * random * np.sqrt(b)
            solved = np.linalg.solve(identity + w @ w.transpose(0, 2, 1), w)
            leverage = np.einsum("k,krs,krs->rs", self.multiplicity, w, solved)
            new_a = -np.log1p(leverage.sum(1) / (n * p * a))
            new_b = -np.log1p(leverage.sum(0) / (n * q * b))
            change = max(np.abs(new_a - log_a).max(), np.abs(new_b - log_b).max())
            log_a, log_b = 0.5 * (log_a + new_a), 0.5 * (log_b + new_b)
            if change < TOLERANCE:
                return log_a, log_b, float(leverage.sum())
        raise ValueError(f"no fixed point at ln v={log_v:g} for N={n:g}; use fewer or larger classes")


def cluster_law(
    kappa: float, dim: int, spread: float, cosines: Array, query_share: Array, key_share: Array
) -> MixtureLaw:
    """The law for K clusters of directions on S^{dim-1}, logits kappa cos.

    A token of cluster alpha is sqrt(1 - g) mu_alpha + sqrt(g) u, u uniform on the unit sphere orthogonal to mu_alpha;
    g = `spread` in (0, 1), cosines (K, K) = mu_alpha.mu_beta, shares (K,) those of the sample. Between clusters the
    kernel is W = e^{kappa (1 - g) cos} M^2 with M = E e^{kappa sqrt(g (1 - g)(1 - cos^2)) u_1} for the tilt of each
    side, rows normalised; within and across clusters the u interact as on S^{dim-2} with kappa g, so that the modes are
    W sigma_k(kappa g, dim - 1). Exact for one cluster; approximate when clusters overlap, as the tilt across clusters
    is averaged. ValueError as `MixtureLaw` and `sphere_spectrum`, and for a spread outside (0, 1) or dim < 3.
    """
    g = float(in_range("spread", spread, 1e-9, 1.0 - 1e-9, remedy="g = 1 - squared mean length, inside (0, 1)"))
    cos = in_range("cosines", cosines, -1.0, 1.0, remedy="give the cosines between cluster centres")
    sigma, mult = sphere_spectrum(kappa * g, dim - 1)
    tilt = kappa * np.sqrt(g * (1.0 - g) * (1.0 - cos**2))
    log_tilt = np.array([log_moment(t, dim - 1) if t > 1e-6 else 0.0 for t in tilt.ravel()]).reshape(cos.shape)
    log_weight = kappa * (1.0 - g) * cos + 2.0 * log_tilt
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight @ finite("key_share", key_share)[:, None]
    return MixtureLaw(query_share, key_share, sigma[:, None, None] * weight, mult)
