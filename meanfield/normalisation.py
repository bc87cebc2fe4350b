"""Placements of the normalisation in a transformer block, as layer maps and as speeds of the continuous flow.

A token is x = r theta, |theta| = 1, and A is the attention output at theta (values applied). With gain alpha:

    name        layer map                                      1/s         dr/dt
    post-ln     x <- N(theta + alpha A)                        1           0
    pre-ln      x <- x + alpha A                               1/r         <theta, A>
    mix-ln      post-ln before depth `switch`, then pre-ln
    peri-ln     x <- x + alpha N(A)                            1/(r |A|)   <theta, A>/|A|
    ngpt        x <- N(theta + alpha (N(A) - theta))           1/|A|       0
    sqrt        x <- N(theta + alpha A/sqrt(layer + 1))        1/sqrt(t+1) 0

with N(y) = y/|y| and the flow dtheta/dt = alpha (1/s) P_theta A, dr/dt times alpha: the layer map is one Euler step of
length 1 of the flow, up to terms of order alpha^2. The unit radius stands for the sqrt(d) of a real layer norm.
Source: Karagodin, Ge, Polyanskiy and Rigollet, arXiv:2510.22026 (speeds; there s and alpha_t/|A| for ngpt);
docs/theory/particles.md (layer maps).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from meanfield._checks import TINY, Array, scalar
from meanfield.measure import unit


@dataclass(frozen=True)
class Normalisation(ABC):
    """One placement of the normalisation; tokens x and attention outputs are (N, d)."""

    name: ClassVar[str]

    @abstractmethod
    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        """The tokens after one residual block of gain alpha; `depth` counts the layers before it."""

    @abstractmethod
    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        """1/s and the factor of <theta, A> in dr/dt, from r = |x| and strength = |A|, each (N, 1)."""

    def velocity(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        """dx/dt = alpha ((dr/dt) theta + r (1/s) P_theta A), (N, d), at time `depth`. Exact.

        ValueError when a token is zero, or an attention output whose direction the placement uses.
        """
        theta = unit(x)
        r = np.linalg.norm(x, axis=1, keepdims=True)
        radial = (theta * attended).sum(1, keepdims=True)
        turn, growth = self.speeds(r, np.linalg.norm(attended, axis=1, keepdims=True), depth)
        return gain * (growth * radial * theta + r * turn * (attended - radial * theta))


@dataclass(frozen=True)
class PostLN(Normalisation):
    """Normalise after adding: tokens stay on the sphere."""

    name = "post-ln"

    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        return unit(unit(x) + gain * attended)

    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        return np.ones_like(r), np.zeros_like(r)


@dataclass(frozen=True)
class PreLN(Normalisation):
    """Normalise the input of the block only: norms grow, angles slow down as 1/r."""

    name = "pre-ln"

    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        return x + gain * attended

    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        return _inverse("token", r), np.ones_like(r)


@dataclass(frozen=True)
class MixLN(Normalisation):
    """Post-LN before depth `switch`, Pre-LN from then on."""

    name = "mix-ln"
    switch: float = 6.0

    def __post_init__(self) -> None:
        scalar("switch", self.switch, 0.0, remedy="give the number of layers that normalise after adding")

    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        return self._now(depth).layer(x, attended, gain, depth)

    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        return self._now(depth).speeds(r, strength, depth)

    def _now(self, depth: float) -> Normalisation:
        return PostLN() if depth < self.switch else PreLN()


@dataclass(frozen=True)
class PeriLN(Normalisation):
    """Normalise the input and the output of the block."""

    name = "peri-ln"

    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        return x + gain * unit(attended)

    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        inverse = _inverse("attention output", strength)
        return _inverse("token", r) * inverse, inverse


@dataclass(frozen=True)
class NGPT(Normalisation):
    """Move on the sphere towards the normalised attention output (arXiv:2410.01131)."""

    name = "ngpt"

    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        theta = unit(x)
        return unit(theta + gain * (unit(attended) - theta))

    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        return _inverse("attention output", strength), np.zeros_like(r)


@dataclass(frozen=True)
class SqrtScaling(Normalisation):
    """Post-LN with the output divided by the root of the depth ("curse of depth" scaling)."""

    name = "sqrt"

    def layer(self, x: Array, attended: Array, gain: float, depth: float) -> Array:
        return unit(unit(x) + gain * self._factor(depth) * attended)

    def speeds(self, r: Array, strength: Array, depth: float) -> tuple[Array, Array]:
        return np.full_like(r, self._factor(depth)), np.zeros_like(r)

    def _factor(self, depth: float) -> float:
        return 1.0 / np.sqrt(scalar("depth", depth, 0.0, remedy="give the layers passed") + 1.0)


def _inverse(name: str, norm: Array) -> Array:
    if np.any(norm < TINY):
        raise ValueError(f"|{name}| is 0 and the speed infinite; drop the token or use post-ln")
    return 1.0 / norm


NORMALISATIONS = (PostLN(), PreLN(), MixLN(), PeriLN(), NGPT(), SqrtScaling())
"""One of each placement, with its default parameters."""


def normalisation(choice: str | Normalisation) -> Normalisation:
    """The placement of a name, or the given object itself. ValueError on unknown names, listing the known ones."""
    if isinstance(choice, Normalisation):
        return choice
    known = {each.name: each for each in NORMALISATIONS}
    if choice not in known:
        raise ValueError(f"normalisation={choice!r} is unknown; choose one of {', '.join(known)}")
    return known[choice]
