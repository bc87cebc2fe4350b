"""Keeping the keys (or blocks of keys) with the largest logits, renormalised."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from meanfield._checks import Array, in_range, token_count
from meanfield.derivations.inverse_mills import RESULT as INVERSE_MILLS
from meanfield.derivations.kept_mass_bound import RESULT as KEPT_MASS_BOUND
from meanfield.derivations.sparse_weights import RESULT as SPARSE_WEIGHTS
from meanfield.derivations.top_mass import RESULT as TOP_MASS
from meanfield.reductions._checks import fraction_of_keys, mass_share, square

LEAST_MASS = 1e-100
"""Kept masses below are refused: the squares of their inverses approach the largest float64 number."""


def kept_mass_bound(kept_mass: ArrayLike, value_spread: ArrayLike) -> Array:
    """Guaranteed bound ((1 - rho)/rho) V_A on the error of any kept set of keys, renormalised (loose: 10 to 1000
    times)."""
    rho = mass_share(kept_mass)
    if np.any(rho == 0.0):
        raise ValueError("kept_mass=0 keeps nothing; the bound needs a positive kept mass")
    return np.asarray(KEPT_MASS_BOUND.function(rho, square("value_spread", value_spread)))


def top_mass(fraction: ArrayLike, logit_std: ArrayLike) -> Array:
    """Mass kept by the largest share f of Gaussian logits of standard deviation s: Phi(s + Phi^-1(f)),
    dimensionless.

    For blocks selected by their pooled key, s is the standard deviation of the block means of the logits.
    """
    return np.asarray(TOP_MASS.function(_std(logit_std), -ndtri(fraction_of_keys(fraction))))


def top_shift(fraction: ArrayLike, logit_std: ArrayLike) -> Array:
    """How far the kept mass lies above all mass, in standard deviations of the logits: phi(s - z)/Phi(s - z).

    z = Phi^-1(1 - f), phi and Phi the Gaussian density and distribution: the inverse Mills ratio. Exact for infinitely
    many Gaussian logits.
    """
    f = np.minimum(fraction_of_keys(fraction), 1.0 - 1e-16)
    return np.asarray(INVERSE_MILLS.function(_std(logit_std), -ndtri(f)))


def top_error(
    fraction: ArrayLike,
    logit_std: ArrayLike,
    slope: ArrayLike,
    residual: ArrayLike,
    squares: ArrayLike,
    tokens: ArrayLike,
) -> Array:
    """Error of keeping the largest share f of Gaussian logits: |c|^2 h^2 + sigma_r^2 (q R - h^2/N).

    h = `top_shift`; slope |c|^2 = |Cov(v, l)/s|^2, the part of the values linear in the logit; residual sigma_r^2 =
    sigma_v^2 - |c|^2; squares q = sum_j A_j^2. R = P (1/rho - 1)^2 + 1 - P, with rho the kept mass and P = Phi(2s - z)
    the share of q that is kept, is the squared weight that the residual is averaged with: the noise floor that the
    first term alone lacks. Exact for Gaussian logits and values linear in the logit up to an independent residual;
    needs the kept set to hold many effective keys. ValueError below a kept mass of 1e-100.
    """
    f, s = fraction_of_keys(fraction), _std(logit_std)
    rho, share = top_mass(f, s), top_mass(f, 2.0 * s)
    if np.any(rho < LEAST_MASS):
        raise ValueError(f"fraction={np.min(f):g} keeps the mass {np.min(rho):.1e}; keep at least one key, f >= 1/N")
    shift = np.where(f < 1.0, top_shift(f, s) ** 2, 0.0)
    noise = square("squares", squares) * SPARSE_WEIGHTS.function(rho, share) - shift / token_count(tokens)
    return square("slope", slope) * shift + square("residual", residual) * np.maximum(noise, 0.0)


def _std(logit_std: ArrayLike) -> Array:
    return in_range("logit_std", logit_std, 0.0, remedy="a standard deviation is not negative")
