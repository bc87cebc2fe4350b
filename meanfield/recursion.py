"""The three-mode recursion in depth: global mean M, between-frame variance D_b, within-frame variance D_w per token.

A layer is a frame-attention block followed by a global-attention block, Pre-LN, residual gains a_f and a_g, coherence c
of the value maps (V = c I + sqrt(1 - c^2) random). A block with gain a multiplies a mode that its attention scales by x
by

    F(x) = 1 + 2 c a x / r + a^2 x^2 / r^2,      r^2 = M + D_b + D_w  (at the block's input)

(meanfield.derivations.random_v; c = 1 is the exact coherent layer (1 + a x/r)^2).

Frame attention: x = 1 for M and D_b, x = delta(beta, P) for D_w. Global attention: x = 1 for M, x = delta(beta, N) for
D_b and D_w. Each layer then adds noise of energies per token that is common to all, to a frame, or to a token. At
another number of exchangeable frames S and tokens per frame P the finite-sample energies are
D_w = w (1 - 1/P), D_b = (b + w/P)(1 - 1/S), M = m + (b + w/P)/S of the population energies (m, b, w).
Source: docs/theory/dynamics.md 2.1, 2.2 A-E. Exact for equal norms and V = I or random V on average; a model of
trained blocks, whose parameters are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, least_squares

from meanfield._checks import TINY, Array, count, evaluated, in_range, positive, scalar
from meanfield.closed_forms import contraction
from meanfield.derivations.alternating_exponent import RESULT as ALTERNATING
from meanfield.derivations.linear_response_random import RESULT as RANDOM_EXPONENT
from meanfield.derivations.noise_crossover import RESULT as CROSSOVER
from meanfield.derivations.noise_floor import RESULT as NOISE_FLOOR
from meanfield.derivations.random_v import RESULT as FACTOR
from meanfield.derivations.random_v_depth import RESULT as RANDOM_DEPTH

FLOOR = 1e-12
"""Energies below this share of the largest are compared as if they had it."""


@dataclass(frozen=True)
class Recursion:
    """Parameters of the recursion; all energies in the units of |x|^2 per token, gains in those of |x|.

    gain_growth: the gains of layer l are multiplied by exp(gain_growth * l). ValueError on negative or non-finite
    values.
    """

    gain_frame: float
    gain_global: float
    coherence: float = 1.0
    noise_mean: float = 0.0
    noise_frame: float = 0.0
    noise_token: float = 0.0
    beta: float = 0.0
    gain_growth: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = (
                (-np.inf if field.name == "gain_growth" else 0.0),
                (1.0 if field.name == "coherence" else np.inf),
            )
            scalar(field.name, getattr(self, field.name), low, high, remedy="see meanfield.recursion for its meaning")


def rollout(
    recursion: Recursion, start: ArrayLike, layers: int, frames: ArrayLike, tokens_per_frame: ArrayLike
) -> Array:
    """Energies (M, D_b, D_w) before the first layer and after each: (layers + 1, ..., 3).

    start: population energies (m, b, w), (3,) or (..., 3); frames S and tokens_per_frame P >= 1 broadcast to (...).
    ValueError for a start without energy, layers that are no count, and energies that leave float64.
    """
    depth = count("layers", layers, remedy="give the number of layers")
    s, p = _frames_and_tokens(frames, tokens_per_frame)
    state = _not_zero("start", sample_energies(start, s, p))
    noise = sample_energies([recursion.noise_mean, recursion.noise_frame, recursion.noise_token], s, p)
    states = [state]
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            for layer in range(depth):
                growth = np.exp(recursion.gain_growth * layer)
                state = _block(recursion, state, growth * recursion.gain_frame, p, within_frame=True)
                state = _block(recursion, state, growth * recursion.gain_global, s * p, within_frame=False)
                state = state + noise
                states.append(state)
    except FloatingPointError:
        raise ValueError(f"energies leave float64 in layer {len(states)} of {recursion}; lower gain_growth") from None
    return np.stack(states)


def sample_energies(population: ArrayLike, frames: ArrayLike, tokens_per_frame: ArrayLike) -> Array:
    """Expected (M, D_b, D_w) of S exchangeable frames of P exchangeable tokens from population energies; (..., 3).

    Exact. ValueError unless S, P >= 1 and the energies are not negative.
    """
    m, b, w = np.moveaxis(_energies("population energies", population), -1, 0)
    s, p = _frames_and_tokens(frames, tokens_per_frame)
    frame_mean = b + w / p
    return np.stack(np.broadcast_arrays(m + frame_mean / s, frame_mean * (1.0 - 1.0 / s), w * (1.0 - 1.0 / p)), -1)


def population_energies(observed: ArrayLike, frames: ArrayLike, tokens_per_frame: ArrayLike) -> Array:
    """The inverse of `sample_energies`, clipped at zero; needs S >= 2 and P >= 2. Shapes (..., 3) -> (..., 3)."""
    mean, between, within = np.moveaxis(_energies("observed energies", observed), -1, 0)
    s = in_range("frames", frames, 2.0, remedy="one frame does not show the variance between frames; probe two or more")
    p = in_range("tokens_per_frame", tokens_per_frame, 2.0, remedy="one token per frame has no variance within frames")
    w = within / (1.0 - 1.0 / p)
    frame_mean = between / (1.0 - 1.0 / s)
    return np.stack([np.maximum(mean - frame_mean / s, 0.0), np.maximum(frame_mean - w / p, 0.0), w], -1)


def spread(energies: ArrayLike, tokens: ArrayLike) -> Array:
    """g = 1 - mean pairwise cosine = N/(N - 1) (D_b + D_w)/r^2, in [0, N/(N - 1)]; exact for tokens of equal norm.

    ValueError for N < 2 and for tokens without energy.
    """
    mean, between, within = np.moveaxis(_not_zero("energies", _energies("energies", energies)), -1, 0)
    n = in_range("N", tokens, 2.0, remedy="a pairwise cosine needs two tokens")
    return n / (n - 1.0) * (between + within) / (mean + between + within)


def fit_recursion(
    observed: ArrayLike, frames: int, tokens_per_frame: int, *, beta: float = 0.0
) -> tuple[Recursion, float]:
    """Parameters of the recursion from observed energies (layers + 1, 3), with the rms residual of the log energies.

    Robust least squares (soft L1 on log energies) over seven parameters: both gains and their growth, the coherence and
    the three noises; from the best of three starting points. Deterministic. ValueError when fewer than 4 layers or
    2 frames were observed.
    """
    target = _energies("observed energies", observed)
    if target.ndim != 2 or target.shape[0] < 5:
        raise ValueError(f"observed energies have shape {target.shape}; give (layers + 1, 3) with at least 4 layers")
    _not_zero("observed energies", target)
    start = population_energies(target[0], frames, tokens_per_frame)
    floor = FLOOR * target.sum(-1).max()
    log_target = np.log(np.maximum(target, floor))
    scale = target.sum(-1)[0]
    layers = target.shape[0] - 1

    def unpack(x: Array) -> Recursion:
        gains = np.sqrt(scale) * np.exp(x[:2])
        noises = scale * np.exp(x[3:6])
        coherence = 1.0 / (1.0 + np.exp(-x[2]))
        return Recursion(gains[0], gains[1], coherence, *noises, beta=beta, gain_growth=x[6])

    def residual(x: Array) -> Array:
        energies = rollout(unpack(x), start, layers, frames, tokens_per_frame)
        return (np.log(np.maximum(energies, floor)) - log_target)[1:].ravel()

    bounds = ([-12.0, -12.0, -8.0, -25.0, -25.0, -25.0, -1.0], [4.0, 4.0, 8.0, 6.0, 6.0, 6.0, 1.0])

    def solve(x: ArrayLike, evaluations: int):
        return least_squares(residual, x, loss="soft_l1", bounds=bounds, max_nfev=evaluations, xtol=1e-10, ftol=1e-12)

    starts = ([gain, gain, c, -6.0, -6.0, -6.0, 0.0] for gain, c in ((-1.0, 3.0), (-1.0, -3.0), (-4.0, 0.0)))
    best = min((solve(x, 12) for x in starts), key=lambda fit: fit.cost)
    best = solve(best.x, 60)
    recursion = unpack(best.x)
    plain = {field.name: float(getattr(recursion, field.name)) for field in fields(recursion)}
    return Recursion(**plain), float(np.sqrt(np.mean(residual(best.x) ** 2)))


def asymptotic_exponents(recursion: Recursion) -> tuple[float, float]:
    """Exponents (between frames, within frames) of D_b/r^2 and D_w/r^2 ~ L^-exponent as L -> infinity, without noise.

    Coherence c > 0: 2 a_g/(a_g + a_f) and 2, once r >> a/c; c = 0 (random V): 1 - a_f^2/(a_f^2 + a_g^2) and 1. The
    between-frame variance is O(1/L) exactly at equal coherent gains. ValueError with noise, with growing gains or
    without any gain: those depths have no such power law (`noisy_spread` for token noise).
    """
    noise = recursion.noise_mean + recursion.noise_frame + recursion.noise_token
    frame, total = recursion.gain_frame, recursion.gain_frame + recursion.gain_global
    if noise > 0.0 or recursion.gain_growth != 0.0 or total == 0.0:
        raise ValueError(f"{recursion} has noise, growing gains or no gain; fit_power_law of its rollout")
    if recursion.coherence > 0.0:
        return float(ALTERNATING.function(recursion.gain_global, frame)), 2.0
    share = frame / total
    every = share**2 + (1.0 - share) ** 2
    return float(RANDOM_EXPONENT.function(share**2, every)), float(RANDOM_EXPONENT.function(0.0, every))


def noisy_spread(depth: ArrayLike, constant: ArrayLike, noise: ArrayLike, gain: ArrayLike) -> Array:
    """g_L = (C + sigma^2 L)/(alpha L)^2: coherent Pre-LN layers with fresh token noise of energy sigma^2 per layer.

    constant: C = r_0^2 g_0 K of `meanfield.equiangular.collapse_constant`. Approximate: L >> r_0/alpha and g << 1.
    ValueError on negative values or zero depth or gain.
    """
    layer = in_range("depth", depth, 1.0, remedy="the law starts after the first layer")
    c = in_range("constant", constant, 0.0, remedy="C = r_0^2 g_0 K is not negative")
    s2 = in_range("noise", noise, 0.0, remedy="an energy is not negative")
    alpha = positive("gain", gain, remedy="a gain of zero changes nothing")
    return evaluated("g", NOISE_FLOOR.function, c, s2, alpha, layer, remedy="rescale the energies and the gain")


def noise_crossover(constant: ArrayLike, noise: ArrayLike) -> Array:
    """L* = C/sigma^2, the depth at which `noisy_spread` turns from L^-2 to the O(1/L) of fresh noise.

    ValueError on a negative constant or a noise that is not positive.
    """
    c = in_range("constant", constant, 0.0, remedy="C = r_0^2 g_0 K is not negative")
    s2 = positive("noise", noise, remedy="without noise there is no crossover")
    return evaluated("the crossover", CROSSOVER.function, c, s2, remedy="noise this weak never matters")


def random_value_norm(depth: float, start: float, spread_energy: float, gain: float) -> float:
    """r^2 after L layers of Pre-LN with random V and flat attention: L = (y - y_0 + D ln((y - D)/(y_0 - D)))/alpha^2.

    start: y_0 = r_0^2 (|x|^2); spread_energy: the conserved token variance D < y_0. g = N/(N - 1) D/r^2
    falls as O(1/L). With gain proportional to L^{-1/2} the result depends on alpha^2 L alone: the correlation stays
    below 1 (arXiv:2206.03126). Exact for small alpha and in the mean over V. ValueError unless 0 <= D < y_0, L >= 0,
    alpha > 0.
    """
    layer = scalar("depth", depth, 0.0, remedy="give a number of layers")
    y_0 = scalar("start", start, TINY, remedy="a token has a positive norm")
    d = scalar("spread_energy", spread_energy, 0.0, remedy="an energy is not negative")
    alpha = scalar("gain", gain, TINY, 1e100, remedy="a gain of zero changes nothing, a huge one leaves float64")
    if d >= y_0:
        raise ValueError(f"spread_energy={d:g} leaves no mean in start={y_0:g}; without a mean nothing grows")

    def excess(y):
        return RANDOM_DEPTH.function(y, y_0, d, alpha) - layer

    # (r^2)' = alpha^2 (1 - D/r^2) <= alpha^2 bounds the root, which may be the bound within rounding.
    end = scalar("start + gain^2 depth", y_0 + alpha**2 * layer, y_0, remedy="rescale the energies")
    if end == y_0 or excess(end) <= 0.0:
        return end
    return float(brentq(excess, y_0, end, rtol=1e-14))


def _block(recursion: Recursion, state: Array, gain: Array, keys: Array, *, within_frame: bool) -> Array:
    mean, between, within = np.moveaxis(state, -1, 0)
    r = np.sqrt(state.sum(-1))
    if recursion.beta == 0.0:
        delta: Array | float = 0.0
    else:
        seen = within if within_frame else between + within
        total = np.where(seen + mean > 0.0, seen + mean, 1.0)
        g = np.minimum(keys / np.maximum(keys - 1.0, 1.0) * seen / total, 1.0)
        delta = contraction(g, recursion.beta, keys)
    small = FACTOR.function(recursion.coherence, gain / r, delta)
    large = FACTOR.function(recursion.coherence, gain / r, 1.0)
    return np.stack([mean * large, between * (large if within_frame else small), within * small], -1)


def _frames_and_tokens(frames: ArrayLike, tokens_per_frame: ArrayLike) -> tuple[Array, Array]:
    return (
        in_range("frames", frames, 1.0, remedy="give at least one frame"),
        in_range("tokens_per_frame", tokens_per_frame, 1.0, remedy="give at least one token per frame"),
    )


def _not_zero(name: str, energies: Array) -> Array:
    if np.any(energies.sum(-1) == 0.0):
        raise ValueError(f"{name} are 0: tokens at the origin have no direction; give a mean, between or within energy")
    return energies


def _energies(name: str, value: ArrayLike) -> Array:
    energies = in_range(name, value, 0.0, remedy="energies (mean, between, within) are mean squares per token")
    if energies.ndim == 0 or energies.shape[-1] != 3:
        raise ValueError(f"{name} have shape {energies.shape}; the last axis is (mean, between frames, within frames)")
    return energies
