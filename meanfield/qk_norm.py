"""The finite-N law of QK-normed heads: uniform directions on a sphere, with their damping and heavy tails at N tokens.

The population is that of `meanfield.sphere`, the law that of `meanfield.finite_n`, the stretch m(theta) that of
`meanfield.condensation`. The switch SMOOTH_DIM was chosen on a development grid of dense spectra, not derived.
Source: docs/theory/finite_n.md, where it is measured against dense SVD.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, token_count
from meanfield.condensation import heavy_tail, regime
from meanfield.derivations.heavy_tail_slope import RESULT as HEAVY_TAIL_SLOPE
from meanfield.finite_n import PopulationLaw
from meanfield.sphere import MAX_DAMPED_KAPPA, damped_spectrum, log_moment, logit_variance, sphere_spectrum

NEGLIGIBLE = 1e-4
"""Initial slope of ln m, E x^2/(N (E x)^2) with x = e^{2l}, below which a sphere is at its limit of many tokens."""
SMOOTH_DIM = 4
"""Up to this D only energy and leading value are corrected at finite N: rows of features are smooth in so few
dimensions that damping over-corrects the shape of the spectrum (effective rank 1 to 5 per cent low, below 1 without).
Chosen on the development grid (D = 3, 4, 8, ...) of experiments/finite_n_spectra.py, not derived; D = 5 to 7 are not
in that grid."""
NEGLIGIBLE_VARIANCE = 1e-6
"""Logit variances below this leave nothing to correct; 1 + s^2 would lose it in rounding."""


@dataclass(frozen=True, eq=False)
class SphereLaw(PopulationLaw):
    """The law of a QK-normed head: uniform directions on S^{dim-1}, logits kappa cos; sigma_k(N) depends on N.

    sigma and multiplicity are those of the limit of many tokens. At N the population is `sphere.damped_spectrum` and
    m(theta) that of independent entries with the same logits (`condensation.heavy_tail`). For D <= SMOOTH_DIM (an
    explicit switch, chosen on the development grid) it is the limit's population with that energy and leading value,
    m = 1. `ranks` multiplies those of the limit by a correction computed at N = 2, 4, 8, ... and interpolated (cubic in
    ln N, within 1e-3); where the correction is negligible, below NEGLIGIBLE, or kappa above MAX_DAMPED_KAPPA, it is 1.
    """

    kappa: float = 0.0
    dim: int = 0

    def ranks(self, tokens: ArrayLike) -> dict[str, Array]:
        """As `SpectralLaw.ranks`."""
        n = token_count(tokens, least=2.0)
        limit = super().ranks(n)
        log_n = np.log2(n.ravel())
        start = np.maximum(np.floor(log_n).astype(int) - 1, 1)
        needed = np.unique(start[:, None] + np.arange(4))
        table = np.array([self._correction(int(j)) for j in needed])  # (nodes, measures)
        index = np.searchsorted(needed, start)[:, None] + np.arange(4)
        weight = _lagrange(log_n - start)
        correction = (weight[:, :, None] * table[index]).sum(1)
        corrected = {name: limit[name] * np.exp(correction[:, i]).reshape(n.shape) for i, name in enumerate(limit)}
        return corrected | {
            name: np.clip(corrected[name], 1.0, n) for name in limit if name not in ("frobenius", "nuclear")
        }

    def leading(self, tokens: ArrayLike) -> Array:
        """s_1 at N tokens, see `sphere.damped_spectrum`."""
        n = token_count(tokens, least=2.0)
        return np.array([self.at(float(x)).top for x in n.ravel()]).reshape(n.shape)

    def singular_values(self, tokens: float, k: int) -> Array:
        """As `PopulationLaw.singular_values`, of the population at this N."""
        law = self.at(float(token_count(tokens, least=2.0)))
        return super().singular_values(tokens, k) if law is self else law.singular_values(tokens, k)

    def regime(self, tokens: ArrayLike) -> np.ndarray:
        """Where rows stand by s^2 = kappa^2/D: dilute, condensing or frozen; see `condensation.regime`."""
        return regime(logit_variance(self.kappa, self.dim), tokens)

    def at(self, tokens: float) -> PopulationLaw:
        """The population at N tokens, itself where it does not differ from the limit."""
        if _limit_reached(self.kappa, self.dim, tokens):
            return self
        sigma, multiplicity, density = damped_spectrum(self.kappa, self.dim, tokens)
        if self.dim > SMOOTH_DIM:
            return PopulationLaw(sigma, multiplicity, heavy_tail(density, tokens))
        energy = multiplicity[1:] @ sigma[1:] ** 2
        return PopulationLaw(np.append(sigma[0], self.sigma[1:] * np.sqrt(energy / self.energy)), self.multiplicity)

    def _correction(self, exponent: int) -> Array:
        return _sphere_correction(self, exponent)


@lru_cache(maxsize=4096)
def _sphere_correction(law: SphereLaw, exponent: int) -> Array:
    """ln of the ranks at N = 2^exponent over those of the limit of many tokens."""
    n = 2.0**exponent
    here = law.at(n)
    limit = PopulationLaw.ranks(law, n)
    if here is law:
        return np.zeros(len(limit))
    ranks = here.ranks(n)
    return np.array([float(np.log(ranks[name] / limit[name])) for name in limit])


def _limit_reached(kappa: float, dim: int, tokens: float) -> bool:
    """Whether damping and heavy tails change nothing visible: E x^2/(N (E x)^2) is below NEGLIGIBLE, x = e^{2l}."""
    if kappa > MAX_DAMPED_KAPPA or kappa**2 < NEGLIGIBLE_VARIANCE * dim:
        return True
    return HEAVY_TAIL_SLOPE.function(log_moment(2.0 * kappa, dim), log_moment(4.0 * kappa, dim), tokens) < np.log(
        NEGLIGIBLE
    )


def _lagrange(x: Array) -> Array:
    """Weights (m, 4) of the cubic through 0, 1, 2, 3 at x (m,)."""
    return np.stack(
        [
            -(x - 1.0) * (x - 2.0) * (x - 3.0) / 6.0,
            x * (x - 2.0) * (x - 3.0) / 2.0,
            -x * (x - 1.0) * (x - 3.0) / 2.0,
            x * (x - 1.0) * (x - 2.0) / 6.0,
        ],
        axis=1,
    )


def sphere_law(kappa: float, dim: int) -> SphereLaw:
    """The law of a QK-normed head: uniform directions on S^{dim-1}, logits kappa cos. See `SphereLaw`."""
    sigma, multiplicity = sphere_spectrum(kappa, dim)
    return SphereLaw(sigma, multiplicity, kappa=float(kappa), dim=int(dim))


def sphere_ranks(tokens: ArrayLike, kappa: float, dim: int) -> dict[str, Array]:
    """Rank measures of softmax attention between N uniform directions; see `SpectralLaw.ranks`."""
    return sphere_law(kappa, dim).ranks(tokens)
