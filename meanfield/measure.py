"""Weighted empirical measures of tokens: their moments, unions, merged groups and distance to a Dirac."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp, softmax

from meanfield._checks import Array, finite, in_range

LARGEST_POINT = 1e150
"""Largest coordinate of a point: the squares in the moments stay within float64."""


@dataclass(frozen=True, eq=False)
class Measure:
    """The measure sum_i e^{log_mass_i} delta_{x_i} of N points x_i in R^d.

    points: (N, d); log_mass: (N,), or None for unit masses. The mass of a token is the number of equal tokens it
    stands for. Stored as read-only float64. Moments are exact, and stable for log masses of any size, because weights
    are formed after subtracting the largest. ValueError on other shapes, no points, non-finite entries, or coordinates
    beyond `LARGEST_POINT`.
    """

    points: Array
    log_mass: Array | None = None

    def __post_init__(self) -> None:
        points = finite("points", self.points).copy()
        if points.ndim != 2 or points.size == 0:
            raise ValueError(f"points have shape {points.shape}; give (N, d) with at least one point and dimension")
        in_range("points", np.abs(points), 0.0, LARGEST_POINT, remedy="rescale the tokens: their squares overflow")
        points.flags.writeable = False
        object.__setattr__(self, "points", points)
        if self.log_mass is not None:
            log_mass = finite("log_mass", self.log_mass).copy()
            if log_mass.shape != points.shape[:1]:
                raise ValueError(f"log_mass has shape {log_mass.shape}; give one value per point, {points.shape[:1]}")
            log_mass.flags.writeable = False
            object.__setattr__(self, "log_mass", log_mass)

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def dim(self) -> int:
        return self.points.shape[1]

    @property
    def log_total_mass(self) -> float:
        """ln of the total mass; finite where the total mass itself overflows."""
        return float(np.log(len(self)) if self.log_mass is None else logsumexp(self.log_mass))

    @property
    def total_mass(self) -> float:
        """The number of tokens that the measure stands for; inf above 1e308."""
        with np.errstate(over="ignore"):
            return float(len(self)) if self.log_mass is None else float(np.exp(self.log_total_mass))

    @property
    def weights(self) -> Array:
        """Masses divided by the total mass, (N,)."""
        return np.full(len(self), 1.0 / len(self)) if self.log_mass is None else softmax(self.log_mass)

    @property
    def mean(self) -> Array:
        """m = sum_i w_i x_i, (d,)."""
        return self.weights @ self.points

    @property
    def covariance(self) -> Array:
        """sum_i w_i (x_i - m)(x_i - m)^T, (d, d)."""
        centred = self.points - self.mean
        return (self.weights[:, None] * centred).T @ centred

    @property
    def variance(self) -> float:
        """D = sum_i w_i |x_i - m|^2, the trace of the covariance, without cancellation."""
        return float(self.weights @ ((self.points - self.mean) ** 2).sum(1))

    @property
    def second_moment(self) -> float:
        """sum_i w_i |x_i|^2 = |m|^2 + D."""
        return float(self.weights @ (self.points**2).sum(1))

    @property
    def energies(self) -> tuple[float, float]:
        """(M, D) = (|m|^2, variance), per token, in the units of |x|^2."""
        mean = self.mean
        return float(mean @ mean), self.variance

    def directions(self) -> Measure:
        """The same masses at x_i/|x_i|. ValueError when a point is zero."""
        return Measure(unit(self.points), self.log_mass)

    def spread(self) -> float:
        """g = 1 - mean cosine over pairs of different tokens = T/(T - 1) sum_i w_i |theta_i - m_theta|^2.

        T is the total mass, theta_i = x_i/|x_i|, m_theta their mean. Exact in O(N d), without the pairs; a token of
        mass 2 counts as two equal tokens. ValueError unless T > 1.
        """
        total = self.total_mass
        if total <= 1.0:
            raise ValueError(f"total mass={total:g} makes no pair of tokens; masses count tokens, so scale them up")
        pairs = 1.0 if np.isinf(total) else total / (total - 1.0)
        return pairs * self.directions().variance

    def merge(self, groups: ArrayLike) -> Measure:
        """One point per group, at the barycentre, with the sum of the masses.

        groups: (N,) integer labels; points come in the order of the sorted labels. Total mass and mean are conserved
        and the variance never grows: it loses the variance within groups. ValueError unless there is one integer per
        point.
        """
        labels = np.asarray(groups)
        if labels.shape != (len(self),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"groups have shape {labels.shape}, dtype {labels.dtype}; give {len(self)} integer labels")
        index = np.unique(labels, return_inverse=True)[1]
        count = index.max() + 1
        log_mass = np.zeros(len(self)) if self.log_mass is None else self.log_mass
        top = np.full(count, -np.inf)
        np.maximum.at(top, index, log_mass)
        share = np.exp(log_mass - top[index])
        mass = np.bincount(index, share, count)
        points = np.zeros((count, self.dim))
        np.add.at(points, index, (share / mass[index])[:, None] * self.points)
        return Measure(points, top + np.log(mass))

    def union(self, other: Measure | ArrayLike) -> Measure:
        """The sum of both measures; points alone have unit masses. ValueError when the dimensions differ."""
        other = as_measure(other)
        if self.dim != other.dim:
            raise ValueError(f"dim={other.dim} of the other measure is not {self.dim}; unite measures on one space")
        points = np.concatenate([self.points, other.points])
        if self.log_mass is None and other.log_mass is None:
            return Measure(points)
        masses = [np.zeros(len(m)) if m.log_mass is None else m.log_mass for m in (self, other)]
        return Measure(points, np.concatenate(masses))


def as_measure(tokens: Measure | ArrayLike) -> Measure:
    """The measure itself, or points (N, d) with unit masses. ValueError as in `Measure`."""
    return tokens if isinstance(tokens, Measure) else Measure(tokens)


def w2_to_dirac(measure: Measure, point: ArrayLike | None = None) -> float:
    """W2 distance of the normalised measure to a Dirac: sqrt(sum_i w_i |x_i - y|^2), in the units of |x|.

    Without `point` the least over all y, which is at y = m and equals the root of the variance. Exact, because a Dirac
    leaves one coupling. ValueError when `point` is not a finite (d,) vector.
    """
    if point is None:
        return float(np.sqrt(measure.variance))
    y = finite("point", point)
    if y.shape != (measure.dim,):
        raise ValueError(f"point has shape {y.shape}; give ({measure.dim},)")
    return float(np.sqrt(measure.weights @ ((measure.points - y) ** 2).sum(1)))


def w2_to_dirac_on_sphere(measure: Measure) -> float:
    """Least chordal W2 of the directions x_i/|x_i| to a Dirac on the unit sphere: sqrt(2 (1 - |m_theta|)).

    In [0, sqrt 2], dimensionless; the best direction is m_theta/|m_theta|. Exact, and free of cancellation:
    1 - |m| = D/(1 + |m|) for unit points of variance D. ValueError when a point is zero.
    """
    mean_energy, variance = measure.directions().energies
    return float(np.sqrt(2.0 * variance / (1.0 + np.sqrt(mean_energy))))


def unit(x: ArrayLike) -> Array:
    """x/|x| along the last axis, for vectors of any finite length. ValueError when a vector is zero or not finite."""
    vectors = finite("vectors", x)
    if vectors.ndim == 0 or vectors.shape[-1] == 0:
        raise ValueError(f"vectors have shape {vectors.shape}; give (..., d) with at least one dimension")
    largest = np.abs(vectors).max(-1, keepdims=True)
    if np.any(largest == 0.0):
        raise ValueError("a vector is 0 and has no direction; drop it or move it off the origin")
    # a power of two, so that squares neither overflow nor vanish and no digit changes
    vectors = np.ldexp(vectors, -np.frexp(largest)[1])
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
