"""Time steppers for dx/dt = f(t, x): explicit Runge-Kutta methods of declared order, and scipy's adaptive ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from scipy.integrate import solve_ivp

from meanfield._checks import TINY, Array, scalar

Velocity = Callable[[float, Array], Array]


class Stepper(Protocol):
    """Whatever advances a state; `order` is the exponent of the global error in the step size."""

    order: int

    def advance(self, velocity: Velocity, x: Array, start: float, stop: float) -> Array:
        """The state at time `stop` from `x` at time `start`."""


@dataclass(frozen=True)
class RungeKutta:
    """Explicit Runge-Kutta method with stages k_i = f(t + c_i h, x + h sum_j a_ij k_j), x <- x + h sum_i b_i k_i.

    step: the largest step; an interval is cut into equal steps no longer than that. order: declared, and measured in
    tests/meanfield/test_steppers.py. ValueError unless step > 0.
    """

    name: str
    order: int
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    step: float = 0.05

    def __post_init__(self) -> None:
        scalar("step", self.step, TINY, remedy="give a positive step of time")

    def advance(self, velocity: Velocity, x: Array, start: float, stop: float) -> Array:
        count = max(int(np.ceil((stop - start) / self.step * (1.0 - 1e-12))), 1)
        h = (stop - start) / count
        for i in range(count):
            x = self._one(velocity, x, start + i * h, h)
        return x

    def _one(self, velocity: Velocity, x: Array, t: float, h: float) -> Array:
        stages: list[Array] = []
        for row in self.matrix:
            shifted = x + h * sum((a * k for a, k in zip(row, stages, strict=True) if a), start=np.zeros_like(x))
            stages.append(velocity(t + h * sum(row), shifted))
        return x + h * sum(b * k for b, k in zip(self.weights, stages, strict=True))


def euler(step: float = 0.05) -> RungeKutta:
    """Explicit Euler, order 1."""
    return RungeKutta("euler", 1, ((),), (1.0,), step)


def heun(step: float = 0.05) -> RungeKutta:
    """Heun's method (explicit trapezoidal rule), order 2."""
    return RungeKutta("heun", 2, ((), (1.0,)), (0.5, 0.5), step)


def rk4(step: float = 0.05) -> RungeKutta:
    """The classical Runge-Kutta method, order 4."""
    return RungeKutta("rk4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), step)


@dataclass(frozen=True)
class Adaptive:
    """scipy's DOP853: steps chosen so that the error estimate is below rtol |x| + atol.

    For users who want a tolerance instead of a step. ValueError unless both are positive.
    """

    rtol: float = 1e-9
    atol: float = 1e-12
    order: ClassVar[int] = 8
    name: ClassVar[str] = "dop853"

    def __post_init__(self) -> None:
        for field in ("rtol", "atol"):
            scalar(field, getattr(self, field), TINY, remedy="give a positive tolerance")

    def advance(self, velocity: Velocity, x: Array, start: float, stop: float) -> Array:
        def flat(t: float, y: Array) -> Array:
            return velocity(t, y.reshape(x.shape)).ravel()

        solution = solve_ivp(flat, (start, stop), x.ravel(), method="DOP853", rtol=self.rtol, atol=self.atol)
        if not solution.success:
            raise ValueError(f"DOP853 stopped at t={solution.t[-1]:g}: {solution.message} Loosen rtol={self.rtol:g}")
        return solution.y[:, -1].reshape(x.shape)
