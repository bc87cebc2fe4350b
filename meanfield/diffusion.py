"""A conservative finite-volume solver for degenerate diffusion with drift in one dimension.

    d_t u = d_x( D(u, t) d_x u + b(x, t) u ),   no flux through the ends

Source: docs/theory/diffusion.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, solve_banded
from scipy.special import exprel

from meanfield._checks import TINY, Array, count, finite, in_range, scalar

Diffusivity = Callable[[Array, float], ArrayLike]
Drift = Callable[[Array, float], ArrayLike]

_GAMMA = 2.0 - np.sqrt(2.0)
_REPRESENTABLE = (1e-100, 1e100)  # whose squares fit float64


@dataclass(frozen=True)
class DiffusionConfig:
    """How `solve_diffusion` steps in time.

    step         the largest time step; shorter ones are taken to meet the output times
    method       "backward-euler": order 1, never negative at any step, since every step solves A(u) u = u_old with an
                 M-matrix A (positive diagonal, other entries <= 0, columns that sum to 1), whose inverse is >= 0;
                 in float64 up to step D/h^2 of about 1e15, where A is singular to rounding.
                 "tr-bdf2": order 2, L-stable. No linear method of order 2 is positive at every step (Bolley and
                 Crouzeix 1978); this one is for (2 - sqrt 2) step <= h^2/D without drift (or |b| h <= D) and with D
                 constant in time. Beyond, only halving keeps the result non-negative: a step that gives a negative
                 value is halved, and the halves again.
    tolerance    Newton ends when the update is below this share of max u; also the size of what counts as rounding
    iterations   Newton iterations before the step is halved
    halvings     times a step is halved before the solver gives up
    ValueError for a step, tolerance, or count that is not positive, or an unknown method.
    """

    step: float
    method: Literal["backward-euler", "tr-bdf2"] = "backward-euler"
    tolerance: float = 1e-12
    iterations: int = 60
    halvings: int = 12

    def __post_init__(self) -> None:
        if self.method not in ("backward-euler", "tr-bdf2"):
            raise ValueError(f"method={self.method!r} is unknown; choose 'backward-euler' or 'tr-bdf2'")
        for name in ("step", "tolerance"):
            scalar(name, getattr(self, name), TINY, remedy="give a number above 0")
        for name in ("iterations", "halvings"):
            count(name, getattr(self, name), least=1, remedy="give a whole number of at least 1")


def solve_diffusion(
    x: ArrayLike,
    initial: ArrayLike,
    times: ArrayLike,
    diffusivity: Diffusivity,
    drift: Drift | None = None,
    *,
    config: DiffusionConfig,
) -> xr.Dataset:
    """Densities u(time, x) of d_t u = d_x( D(u, t) d_x u + b(x, t) u ) from cell averages `initial` at times[0].

    x: (n,) uniformly spaced cell centres; initial: (n,), not negative; times: (k,), increasing. D(u, t) acts on
    arrays of densities and may vanish (at u = 0, or as t grows); b(x, t) acts on arrays of cell faces and pulls
    towards smaller x where it is positive. Returns a Dataset (time, x) with `density`, `mass`, `mean`, `variance`.

    Fluxes are exponentially fitted (Scharfetter and Gummel 1969): second order where D > 0, upwind where D = 0, and
    the equilibrium of a linear pull is kept to second order. D at a face is its mean over the densities between the
    two cells. Mass is conserved to rounding (TR-BDF2: rounding times step D/h^2, the size of its explicit half) and no
    value is negative (see `DiffusionConfig`). At the free boundary of a porous medium, u ~ distance^{1/(m-1)}, the
    order in L1 is min(2, 1 + 1/(m - 1)), as for interpolation of that edge.
    ValueError when D < 0 anywhere (backward diffusion is ill-posed), the grid is not uniform, u, D or b is not finite
    or of another shape, or no step however halved succeeds.
    """
    centres, u = finite("x", x), finite("initial", initial)
    moments = finite("times", times)
    if centres.ndim != 1 or centres.size < 3 or u.shape != centres.shape:
        raise ValueError(f"x has shape {centres.shape} and initial {u.shape}; give two equal lengths of at least 3")
    widths = np.diff(centres)
    if widths[0] <= 0.0 or np.ptp(widths) > 1e-9 * widths[0] * centres.size:
        raise ValueError(f"x has spacings {widths.min():g} to {widths.max():g}; give uniformly increasing cell centres")
    scalar("the spacing of x", widths[0], *_REPRESENTABLE, remedy="measure lengths in another unit")
    in_range("initial", u, 0.0, remedy="a density is not negative")
    if u.max() == 0.0:
        raise ValueError("initial is 0 everywhere: there is nothing to diffuse; give a density with mass")
    scalar("the largest initial value", u.max(), *_REPRESENTABLE, remedy="measure the mass in another unit")
    for name, law in (("diffusivity", diffusivity), ("drift", drift)):
        if law is not None and not callable(law):
            raise ValueError(f"{name}={law!r} is not a function of two arguments; give lambda values, t: constant")
    if moments.ndim != 1 or moments.size == 0 or np.any(np.diff(moments) <= 0.0):
        raise ValueError(f"times={moments} do not increase; list the output times, the first being the start")
    equation = _Equation(centres, diffusivity, drift)
    states = [u]
    for start, end in pairwise(moments):
        steps = int(np.ceil((end - start) / config.step * (1.0 - 1e-12)))
        edges = np.linspace(start, end, steps + 1)
        for now, later in pairwise(edges):
            u = _advance(equation, u, now, later - now, config, config.halvings)
        states.append(u)
    return _dataset(centres, moments, np.array(states), config)


def forward_diffusivity(name: str, value: ArrayLike) -> Array:
    """`value` if it is a diffusivity of a well-posed problem, finite and not negative, else ValueError."""
    values = finite(name, value)
    if np.any(values < 0.0):
        raise ValueError(
            f"{name}={values[values < 0.0].flat[0]:g} is negative: backward diffusion is ill-posed (Hadamard: a wave k "
            "grows as e^{|D| k^2 t}, so no grid converges; attraction makes clusters and finite-time collapse, never "
            "O(1/L)). Follow the particles instead: meanfield.simulate"
        )
    return values


@dataclass(frozen=True)
class _Equation:
    """The semi-discrete equation du_i/dt = (F_{i+1/2} - F_{i-1/2})/h, F = D u_x + b u."""

    centres: Array
    diffusivity: Diffusivity
    drift: Drift | None

    @property
    def width(self) -> float:
        return float(self.centres[1] - self.centres[0])

    def flux(self, left: Array, right: Array, t: float) -> Array:
        """F at the inner faces between cells of values `left` and `right`.

        Fitted to the local exponential: F = D B(|p|) (right - left)/h + b^+ right + b^- left with p = b h/D and the
        Bernoulli function B(p) = p/(e^p - 1), so that both coefficients keep their sign at every p.
        """
        d = self.face_diffusivity(np.maximum(left, 0.0), np.maximum(right, 0.0), t)
        if self.drift is None:
            return d * (right - left) / self.width
        faces = 0.5 * (self.centres[1:] + self.centres[:-1])
        b = _on_faces("drift", finite("drift", self.drift(faces, t)), left)
        with np.errstate(over="ignore"):
            peclet = np.divide(np.abs(b) * self.width, d, out=np.full_like(d, np.inf), where=d > 0.0)
        fitted = d / exprel(peclet)
        return fitted * (right - left) / self.width + np.maximum(b, 0.0) * right + np.minimum(b, 0.0) * left

    def face_diffusivity(self, left: Array, right: Array, t: float) -> Array:
        """The mean of D over the densities from left to right, by Simpson's rule.

        Then D (right - left) is the difference of the primitive of D, which keeps the order at a free boundary.
        """
        low, middle, high = (
            _on_faces("D", forward_diffusivity("D", self.diffusivity(u, t)), left)
            for u in (left, 0.5 * (left + right), right)
        )
        return (low + high + 4.0 * middle) / 6.0

    def rate(self, u: Array, t: float) -> Array:
        """du/dt, (n,); its sum telescopes to zero."""
        return self._divergence(self.flux(u[:-1], u[1:], t))

    def jacobian(self, u: Array, t: float) -> Array:
        """d rate/du in the (3, n) banded form of `solve_banded`, by one-sided differences of each face's flux."""
        left, right = u[:-1], u[1:]
        nudge = 1e-7 * u.max()
        flux = self.flux(left, right, t)
        by_left = (self.flux(left + nudge, right, t) - flux) / nudge
        by_right = (self.flux(left, right + nudge, t) - flux) / nudge
        bands = np.zeros((3, u.size))
        bands[0, 1:], bands[2, :-1] = by_right, -by_left
        bands[1, :-1] += by_left
        bands[1, 1:] -= by_right
        return bands / self.width

    def _divergence(self, flux: Array) -> Array:
        return np.diff(np.concatenate([[0.0], flux, [0.0]])) / self.width


def _advance(equation: _Equation, u: Array, t: float, step: float, config: DiffusionConfig, halvings: int) -> Array:
    """u after one step, or after two halves of it when it did not converge to non-negative values."""
    after = (_backward_euler if config.method == "backward-euler" else _tr_bdf2)(equation, u, t, step, config)
    if after is not None and after.min() >= -config.tolerance * after.max():
        return _without_negative_rounding(after)
    if halvings == 0:
        raise ValueError(
            f"Newton's method did not converge at t={t:g} even with step={step:g}; D and b must be finite and "
            "continuous in u, and step D/h^2 below 1e15: smooth them, allow more iterations, or give smaller steps"
            if after is None
            else f"no non-negative solution at t={t:g} even with step={step:g}; use method='backward-euler' or more "
            "halvings"
        )
    half = 0.5 * step
    middle = _advance(equation, u, t, half, config, halvings - 1)
    return _advance(equation, middle, t + half, half, config, halvings - 1)


def _backward_euler(equation: _Equation, u: Array, t: float, step: float, config: DiffusionConfig) -> Array | None:
    return _solve(equation, u, u, step, t + step, config)


def _tr_bdf2(equation: _Equation, u: Array, t: float, step: float, config: DiffusionConfig) -> Array | None:
    """Trapezium to t + gamma step, then BDF2 through the three points, gamma = 2 - sqrt 2 (Bank et al. 1985)."""
    weight = 0.5 * _GAMMA * step
    middle = _solve(equation, u, u + weight * equation.rate(u, t), weight, t + _GAMMA * step, config)
    if middle is None:
        return None
    known = (middle - (1.0 - _GAMMA) ** 2 * u) / (_GAMMA * (2.0 - _GAMMA))
    return _solve(equation, middle, known, weight, t + step, config)


def _solve(
    equation: _Equation, guess: Array, known: Array, weight: float, t: float, config: DiffusionConfig
) -> Array | None:
    """u with u - weight rate(u, t) = known by Newton's method; None when it does not converge.

    The last update is applied even when it is below the tolerance: it removes the rounding of the linear solve, so that
    the mass is that of the telescoping fluxes.
    """
    u = guess
    for _ in range(config.iterations):
        bands = -weight * equation.jacobian(u, t)
        bands[1] += 1.0
        try:
            update = solve_banded((1, 1), bands, known + weight * equation.rate(u, t) - u, check_finite=False)
        except LinAlgError:  # singular to rounding
            return None
        u = u + update
        if not np.all(np.isfinite(u)):
            return None
        if np.abs(update).max() <= config.tolerance * np.abs(u).max():
            return u
    return None


def _on_faces(name: str, values: Array, faces: Array) -> Array:
    if values.shape not in ((), (1,), faces.shape):
        raise ValueError(f"{name} has shape {values.shape} for {faces.shape} cell faces; return one value for each")
    return np.broadcast_to(values, faces.shape)


def _without_negative_rounding(u: Array) -> Array:
    """u with negative values (of rounding size) set to zero and the mass they had restored by one factor."""
    positive = np.maximum(u, 0.0)
    return positive * (u.sum() / positive.sum())


def _dataset(x: Array, times: Array, density: Array, config: DiffusionConfig) -> xr.Dataset:
    mass = density.sum(1) * (x[1] - x[0])
    mean = density @ x / density.sum(1)
    variance = np.einsum("ti,ti->t", density, (x - mean[:, None]) ** 2) / density.sum(1)
    arrays = {
        "density": (("time", "x"), density, {"long_name": "mean density of the cell", "units": "mass per length"}),
        "mass": ("time", mass, {"long_name": "total mass", "units": "mass"}),
        "mean": ("time", mean, {"long_name": "centre of mass", "units": "length"}),
        "variance": ("time", variance, {"long_name": "variance of the position", "units": "length^2"}),
    }
    coordinates = {
        "time": ("time", times, {"long_name": "time", "units": "layers"}),
        "x": ("x", x, {"long_name": "cell centre", "units": "length"}),
    }
    return xr.Dataset(arrays, coordinates, {"method": config.method, "step": config.step})
