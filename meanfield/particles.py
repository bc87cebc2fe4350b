"""Tokens as interacting particles: the layers of a transformer block by block, or their continuous flow.

    A_i = V sum_j A_ij theta_j,   A_ij ~ m_j exp(beta theta_i.theta_j),   theta = x/|x|,   V = c I + sqrt(1 - c^2) Q

with Q a fresh Haar orthogonal matrix for every block. A layer is a frame block (attention inside each frame, when there
are frames), a global block, and fresh token noise. Exact to rounding in O(N^2 d) time and O(N d) memory.
Source: docs/theory/particles.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, DTypeLike
from scipy.special import logsumexp

from meanfield._checks import Array, count, scalar
from meanfield.attention import attend_symmetric, log_effective_keys, row_entropies
from meanfield.measure import Measure, as_measure, unit, w2_to_dirac_on_sphere
from meanfield.normalisation import Normalisation, normalisation
from meanfield.ranks import RANK_NAMES, spectrum_ranks
from meanfield.steppers import Stepper

UNITS = {
    "mean_energy": ("squared norm of the mean token, M", "|x|^2"),
    "between_energy": ("variance between frames per token, D_b", "|x|^2"),
    "within_energy": ("variance within frames per token, D_w", "|x|^2"),
    "radius": ("root mean square norm of the tokens, r", "|x|"),
    "spread": ("1 - mean pairwise cosine, g", "1"),
    "w2_to_dirac": ("least W2 of the directions to a Dirac on the sphere", "1"),
    **{f"token_{name}": (f"{text} of the normalised tokens", "1") for name, text in RANK_NAMES.items()},
    **{f"centred_{name}": (f"{text} of the centred normalised tokens", "1") for name, text in RANK_NAMES.items()},
    "entropy": ("mean entropy of a row of the next global attention", "nat"),
    "frobenius_squared": ("squared Frobenius norm of the next global attention", "1"),
}
"""Long name and units of every observable."""


@dataclass(frozen=True)
class Dynamics:
    """What happens to the tokens in one layer.

    normalisation: a name of meanfield.normalisation or an object. beta: inverse temperature of unit tokens, any sign.
    gain: of a global block (LayerScale times the norm of its maps). frames: number of equal contiguous frames; None
    leaves the frame blocks out. frame_gain: of a frame block, `gain` if None. coherence: c in [0, 1]; 1 is V = I, 0 an
    independent random V per block. noise: energy of isotropic Gaussian noise per token and layer, in |x|^2. ValueError
    names the value that is not finite or out of range.
    """

    normalisation: str | Normalisation = "pre-ln"
    beta: float = 1.0
    gain: float = 1.0
    frames: int | None = None
    frame_gain: float | None = None
    coherence: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalisation", normalisation(self.normalisation))
        scalar("beta", self.beta, remedy="give the inverse temperature of unit tokens")
        scalar("gain", self.gain, 0.0, remedy="a residual gain is not negative")
        scalar("coherence", self.coherence, 0.0, 1.0, remedy="c = 1 is V = I, c = 0 a random V per block")
        scalar("noise", self.noise, 0.0, remedy="an energy is not negative")
        if self.frames is not None:
            frames = count("frames", self.frames, least=1, remedy="give a whole number, or None for global blocks only")
            object.__setattr__(self, "frames", frames)
        if self.frame_gain is not None:
            scalar("frame_gain", self.frame_gain, 0.0, remedy="a residual gain is not negative")
            if self.frames is None:
                raise ValueError(f"frame_gain={self.frame_gain:g} without frames; give the number of frames")

    @property
    def random(self) -> bool:
        """Whether a layer draws random numbers."""
        return self.coherence < 1.0 or self.noise > 0.0


@dataclass(frozen=True, eq=False)
class Solution:
    """The last measure and the observables on the way: a Dataset over `layer` (0 is the start)."""

    final: Measure
    data: xr.Dataset


def simulate(
    tokens: Measure | ArrayLike,
    dynamics: Dynamics,
    *,
    layers: int,
    flow: Stepper | None = None,
    rng: np.random.Generator | None = None,
    record: Iterable[int] | None = None,
    attention: bool = False,
    progress: Callable[[int, int], None] | None = None,
    block: int = 256,
    workers: int = 1,
    dtype: DTypeLike = np.float64,
) -> Solution:
    """Run tokens through `layers` layers, or through as many units of time of the flow that `flow` integrates.

    tokens: a Measure, or (N, d) for unit masses; a token of mass 2 behaves as two equal tokens. The flow is that of
    meanfield.normalisation, with the velocities of frame and global blocks added; one layer map is its Euler step of
    length 1 to first order in the gain. record: the layers to observe, all by default, start and end included.
    attention: also the entropy and |A|_F^2 of the next global attention, for about two more attentions per record.
    progress(layer, layers) is called after every layer. block, workers (threads) and dtype go to meanfield.attention;
    tokens stay float64. The observables are those of `UNITS`; D_b = 0 without frames. ValueError when tokens do not
    divide into frames, randomness comes without rng or with a flow, or record leaves [0, layers].
    """
    measure = as_measure(tokens)
    layers = count("layers", layers, least=1, remedy="give a whole number of at least 1")
    if dynamics.frames and len(measure) % dynamics.frames:
        raise ValueError(f"N={len(measure)} tokens are not frames={dynamics.frames} equal frames; give a multiple")
    if dynamics.random and flow is not None:
        raise ValueError("coherence < 1 and noise are defined per layer; leave flow out or set coherence=1, noise=0")
    if dynamics.random and rng is None:
        raise ValueError(f"coherence={dynamics.coherence:g}, noise={dynamics.noise:g} need rng; give a Generator")
    wanted = (
        set(range(layers + 1))
        if record is None
        else {0, layers, *(count("record", layer, remedy="give layers") for layer in record)}
    )
    if max(wanted) > layers:
        raise ValueError(f"record contains {max(wanted)}; give layers within 0 and {layers}")
    attend = partial(attend_symmetric, scale=dynamics.beta, block=block, workers=workers, dtype=dtype)
    blocks = _blocks(dynamics, measure, attend)
    observed = {0: observe(measure, frames=dynamics.frames, beta=dynamics.beta if attention else None)}
    x = np.array(measure.points)
    for layer in range(layers):
        if flow is None:
            x = _layer(x, dynamics, blocks, layer, rng)
        else:
            x = flow.advance(partial(_velocity, dynamics, blocks), x, float(layer), float(layer + 1))
        if layer + 1 in wanted:
            now = replace(measure, points=x)
            observed[layer + 1] = observe(now, frames=dynamics.frames, beta=dynamics.beta if attention else None)
        if progress is not None:
            progress(layer + 1, layers)
    data = xr.Dataset(
        {
            name: ("layer", np.array([row[name] for row in observed.values()]), {"long_name": text, "units": units})
            for name, (text, units) in UNITS.items()
            if name in observed[0]
        },
        coords={"layer": ("layer", list(observed), {"long_name": "layers passed", "units": "1"})},
        attrs=_attributes(measure, dynamics, flow, rng, dtype),
    )
    return Solution(replace(measure, points=x), data)


def observe(tokens: Measure | ArrayLike, *, frames: int | None = None, beta: float | None = None) -> dict[str, float]:
    """The observables of `UNITS` of one measure; entropy and |A|_F^2 only where `beta` is given.

    Exact in O(N d^2) (O(N^2) with beta). Ranks come from the eigenvalues of the smaller Gram matrix of the directions,
    which resolve singular values above 1e-8 of the largest; the centred ranks are those of the centred matrix. Equal
    tokens have no centred rank: NaN. ValueError as in `simulate`, and with beta for masses below 1.
    """
    measure = as_measure(tokens)
    between, within = _variances(measure, frames or 1)
    directions = measure.directions()
    values = {
        "mean_energy": measure.energies[0],
        "between_energy": between,
        "within_energy": within,
        "radius": np.sqrt(measure.second_moment),
        "spread": measure.spread(),
        "w2_to_dirac": w2_to_dirac_on_sphere(measure),
    }
    root = np.sqrt(measure.weights)[:, None]
    for kind, x in (("token", directions.points), ("centred", directions.points - directions.mean)):
        values |= {f"{kind}_{name}": value for name, value in _gram_ranks(root * x).items()}
    if beta is not None:
        theta, log_mass, weights = directions.points, measure.log_mass, measure.weights
        values["entropy"] = weights @ row_entropies(theta, theta, log_mass=log_mass, scale=beta)
        log_keys = log_effective_keys(theta, theta, log_mass=log_mass, scale=beta)
        values["frobenius_squared"] = np.exp(logsumexp((0.0 if log_mass is None else log_mass) - log_keys))
    return {name: float(value) for name, value in values.items()}


def _blocks(dynamics: Dynamics, measure: Measure, attend: Callable) -> list[tuple[float, Callable[[Array], Array]]]:
    """(gain, attention output at theta) of the blocks of a layer, in their order."""
    log_mass = measure.log_mass

    def within_frames(theta: Array) -> Array:
        size = len(theta) // dynamics.frames
        parts = [slice(start, start + size) for start in range(0, len(theta), size)]
        masses = [None if log_mass is None else log_mass[part] for part in parts]
        return np.concatenate(
            [attend(theta[part], theta[part], log_mass=mass)[0] for part, mass in zip(parts, masses, strict=True)]
        )

    blocks = [(dynamics.gain, lambda theta: attend(theta, theta, log_mass=log_mass)[0])]
    if dynamics.frames is not None:
        gain = dynamics.gain if dynamics.frame_gain is None else dynamics.frame_gain
        blocks.insert(0, (gain, within_frames))
    return blocks


def _layer(x: Array, dynamics: Dynamics, blocks: list, layer: int, rng: np.random.Generator | None) -> Array:
    for gain, attention in blocks:
        attended = attention(unit(x))
        if dynamics.coherence < 1.0:
            c = dynamics.coherence
            attended = c * attended + np.sqrt(1.0 - c**2) * (attended @ haar(rng, x.shape[1]))
        x = dynamics.normalisation.layer(x, attended, gain, layer)
    if dynamics.noise > 0.0:
        x = x + np.sqrt(dynamics.noise / x.shape[1]) * rng.standard_normal(x.shape)
    return x


def _velocity(dynamics: Dynamics, blocks: list, time: float, x: Array) -> Array:
    theta = unit(x)
    return sum(dynamics.normalisation.velocity(x, attention(theta), gain, time) for gain, attention in blocks)


def haar(rng: np.random.Generator, dim: int) -> Array:
    """A random orthogonal matrix (d, d), uniform (Haar): QR of a Gaussian matrix with positive diagonal of R.

    ValueError unless rng is a Generator and dim a whole number of at least 1.
    """
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng={rng!r} is not a Generator; give np.random.default_rng(seed)")
    dim = count("dim", dim, least=1, remedy="give the number of dimensions")
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))


def _variances(measure: Measure, frames: int) -> tuple[float, float]:
    """(D_b, D_w): the variance of the frame means and the variance around them, weighted by mass."""
    weights = measure.weights.reshape(frames, -1, 1)
    x = measure.points.reshape(frames, -1, measure.dim)
    frame_weights = weights.sum(1)
    means = (weights * x).sum(1) / frame_weights
    between = (frame_weights * (means - measure.mean) ** 2).sum()
    return (float(between) if frames > 1 else 0.0), float((weights * (x - means[:, None]) ** 2).sum())


def _gram_ranks(x: Array) -> dict[str, Array]:
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    energies = np.linalg.eigvalsh(gram)
    if energies[-1] <= 0.0:
        return dict.fromkeys(RANK_NAMES, np.nan)
    return spectrum_ranks(np.sqrt(np.maximum(energies, 0.0)))


def _attributes(
    measure: Measure, dynamics: Dynamics, flow: Stepper | None, rng: np.random.Generator | None, dtype: DTypeLike
) -> dict[str, str | float | int]:
    """netCDF attributes; what is absent is the string "none"."""
    settings = {name: "none" if value is None else value for name, value in asdict(dynamics).items()}
    return settings | {
        "normalisation": str(dynamics.normalisation),
        "tokens": len(measure),
        "dim": measure.dim,
        "total_mass": measure.total_mass,
        "flow": "none" if flow is None else str(flow),
        "seed": "none" if rng is None else str(getattr(rng.bit_generator.seed_seq, "entropy", "unknown")),
        "dtype": str(np.dtype(dtype)),
        "numpy_version": np.__version__,
    }
