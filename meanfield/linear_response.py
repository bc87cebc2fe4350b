"""Linear response in depth: the exponent of any mode from the table of gains and eigenvalues of the blocks of a layer.

Near collapse a Pre-LN block with gain a, whose map multiplies mode k by lambda_k, grows its energy by
1 + 2 c a lambda_k/r + a^2 lambda_k^2/r^2 (c the coherence of its value map, r^2 = E_0 carried by mode 0). Hence

    E_k/E_0 ~ L^{-nu (1 - Lambda_k/Lambda_0)},   coherent (some c a lambda_0 > 0): nu = 2, Lambda = sum c a lambda,
                                                 random (all c = 0):               nu = 1, Lambda = sum a^2 lambda^2.

A per-token MLP aligned with its input is a block with lambda = 1 for every mode (c = 1), one with fresh random weights
the same with c = 0. Source: docs/theory/dynamics.md 2.2 E to F. Asymptotic in depth; exact in the exponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, count, finite, in_range, scalar
from meanfield.derivations.linear_response_coherent import RESULT as COHERENT
from meanfield.derivations.linear_response_random import RESULT as RANDOM
from meanfield.derivations.random_v import RESULT as FACTOR


@dataclass(frozen=True)
class Block:
    """One residual block: gain a >= 0, eigenvalue lambda_k of each mode (mode 0 is the mean), coherence c in [0, 1].

    ValueError outside these ranges or when the mean is not the mode that grows fastest.
    """

    gain: float
    eigenvalues: tuple[float, ...]
    coherence: float = 1.0

    def __post_init__(self) -> None:
        scalar("gain", self.gain, 0.0, remedy="put a sign into the eigenvalues")
        scalar("coherence", self.coherence, 0.0, 1.0, remedy="V = c I + sqrt(1 - c^2) G")
        values = finite("eigenvalues", self.eigenvalues)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"eigenvalues {self.eigenvalues} need the mean and at least one other mode")
        if np.any(np.abs(values) > values[0]):
            raise ValueError(f"eigenvalues {self.eigenvalues}: mode 0 must carry the norm; put the largest one first")


def response_exponents(blocks: Sequence[Block]) -> Array:
    """Exponents (modes,) of E_k/E_0 ~ L^-exponent for a layer made of `blocks`; 0 for the mean itself.

    ValueError when there is no block, when the blocks list different modes, or when nothing feeds the mean.
    """
    table = _table(blocks)
    gains, coherences = np.array([[b.gain, b.coherence] for b in blocks]).T
    coherent = (coherences * gains) @ table
    if coherent[0] > 0.0:
        return np.asarray(COHERENT.function(coherent, coherent[0]))
    random = gains**2 @ table**2
    if random[0] == 0.0:
        raise ValueError("no block feeds the mean: every gain or first eigenvalue is 0, so that there is no growth")
    return np.asarray(RANDOM.function(random, random[0]))


def mode_rollout(blocks: Sequence[Block], start: ArrayLike, layers: int) -> Array:
    """Energies (layers + 1, modes) before the first layer and after each; r^2 is the sum over the modes.

    E_k <- E_k (1 + 2 c a lambda_k/r + a^2 lambda_k^2/r^2), block after block. Exact for V = I, the mean for random V.
    ValueError for a start without energy or of other modes, layers that are no count, or energies that vanish or
    leave float64 on the way.
    """
    depth = count("layers", layers, remedy="give the number of layers")
    energies = in_range("start", start, 0.0, remedy="energies are mean squares per token")
    table = _table(blocks)
    if energies.shape != table.shape[1:]:
        raise ValueError(f"start has shape {energies.shape}, the blocks have {table.shape[1]} modes; make them agree")
    if energies.sum() == 0.0:
        raise ValueError("start is 0: tokens at the origin have no direction; give the mean some energy")
    found = [energies]
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            for _ in range(depth):
                for block, eigenvalues in zip(blocks, table, strict=True):
                    step = block.gain / np.sqrt(energies.sum())
                    energies = energies * FACTOR.function(block.coherence, step, eigenvalues)
                found.append(energies)
    except FloatingPointError:
        raise ValueError(f"energies vanish or leave float64 in layer {len(found)}; change the gains or start") from None
    return np.stack(found)


def _table(blocks: Sequence[Block]) -> Array:
    if len({len(block.eigenvalues) for block in blocks}) != 1:
        raise ValueError("give at least one block, and the same modes in every block")
    return np.array([block.eigenvalues for block in blocks], dtype=np.float64)
