"""Frame attention: the error of attending to the own frame only, and its statistics at other numbers of frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, in_range
from meanfield.derivations.frame_identity import RESULT as FRAME_IDENTITY
from meanfield.reductions._checks import mass_share, square


def frame_error(own_mass: ArrayLike, rest_offset: ArrayLike) -> Array:
    """Error of attending to the own frame only: (1 - rho)^2 |o_rest - o_own|^2, an identity.

    `rest_offset` = |o_rest - o_own|^2, the outputs of the two parts of the keys, each renormalised.
    """
    return np.asarray(FRAME_IDENTITY.function(mass_share(own_mass), square("rest_offset", rest_offset)))


def extrapolate_own_mass(own_mass: ArrayLike, frames: ArrayLike, to_frames: ArrayLike) -> Array:
    """Own-frame mass at another number of exchangeable frames: 1 / (1 + t (1 - rho)/rho), t = (S - 1)/(S_0 - 1).

    Dimensionless. Exact for the ratio of expected sums: the exponential sum over the other frames is proportional to
    their number. ValueError when `frames` < 2 (no other frame was seen).
    """
    rho, t = mass_share(own_mass), frame_ratio(frames, to_frames)
    return np.divide(rho, rho + t * (1.0 - rho), out=np.zeros(np.broadcast(rho, t).shape), where=rho > 0.0)


def extrapolate_squares(
    own_mass: ArrayLike, own_squares: ArrayLike, rest_squares: ArrayLike, frames: ArrayLike, to_frames: ArrayLike
) -> Array:
    """A sum of A^2 times anything per key, at another number of exchangeable frames: (q_own + t q_rest)/(rho + t (1 -
    rho))^2.

    With q = sum A^2 it carries 1/N_eff (and |A|_F^2 = its mean times N), with q = sum A^2 |v - o|^2 the weighted spread
    (there o is taken as unchanged: approximate). t as in `extrapolate_own_mass`.
    """
    rho, t = mass_share(own_mass), frame_ratio(frames, to_frames)
    own, rest = square("own_squares", own_squares), square("rest_squares", rest_squares)
    return (own + t * rest) / (rho + t * (1.0 - rho)) ** 2


def extrapolate_entropy(
    own_mass: ArrayLike, own_entropy: ArrayLike, rest_entropy: ArrayLike, frames: ArrayLike, to_frames: ArrayLike
) -> Array:
    """Row entropy at another number of exchangeable frames: (h_own + t h_rest)/Z + ln Z, Z = rho + t (1 - rho), in
    nats.

    h = -sum A ln A over the own frame and over the others, measured at `frames`. Exact as `extrapolate_own_mass`.
    """
    rho, t = mass_share(own_mass), frame_ratio(frames, to_frames)
    z = rho + t * (1.0 - rho)
    own = in_range("own_entropy", own_entropy, 0.0, remedy="-A ln A is not negative: recompute it")
    rest = in_range("rest_entropy", rest_entropy, 0.0, remedy="-A ln A is not negative: recompute it")
    return (own + t * rest) / z + np.log(z)


def frame_ratio(frames: ArrayLike, to_frames: ArrayLike) -> Array:
    """Ratio (S - 1)/(S_0 - 1) of the numbers of other frames, dimensionless."""
    seen = in_range("frames", frames, 2.0, remedy="probe at least two frames: one frame has no others")
    return (in_range("to_frames", to_frames, 1.0, remedy="give at least one frame") - 1.0) / (seen - 1.0)
