"""The finite-N laws of many heads, evaluated together: from a table in ln N, or directly where that is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

from meanfield._checks import Array
from meanfield.finite_n import SpectralLaw
from meanfield.ranks import RANK_NAMES

RANKS = (*RANK_NAMES, "frobenius")
"""What a law gives for each head; all but the last are at most N."""
DIRECT = 4
"""Laws times numbers of tokens up to which the laws themselves are evaluated."""
LOG_RANGE = (float(np.log(2.0)), float(np.log(1e9)))
"""Range of ln N of the table; beyond it the laws are evaluated."""
STEP = 0.25
"""Spacing of its knots above DENSE."""
DENSE = float(np.log(100.0))
"""Up to here knots are four times as dense: ranks saturate at N, and the growth of s_1 at its bounds."""


@dataclass(frozen=True, eq=False)
class HeadLaws:
    """Laws [layer][head]; heads that share a law share its evaluation."""

    laws: tuple[tuple[SpectralLaw, ...], ...]

    def ranks(self, tokens: Array) -> dict[str, Array]:
        """`RANKS` of every head at N tokens, each (layer, head, *shape of tokens).

        A monotone cubic in ln N through a table that is made once: within 1e-3 of the laws above N = 200 on the
        presets, 1e-2 below. Next to a kink (a rank reaching N, a switch of the sphere law) it is 3e-2; heads with few
        visible keys have one at larger N. Up to DIRECT evaluations, and above N = 1e9, the laws themselves.
        """
        flat, where = tokens.ravel(), self._where
        if len(self.unique) * flat.size <= DIRECT or np.log(flat.max()) > LOG_RANGE[1]:
            values = np.stack([_ranks(law, flat) for law in self.unique])
        else:
            values = np.exp(np.moveaxis(self._table(np.log(flat)), 0, -1))
            values[:, :-1] = np.minimum(values[:, :-1], flat)
        return {name: values[where, i].reshape(where.shape + tokens.shape) for i, name in enumerate(RANKS)}

    def singular_values(self, tokens: float, k: int) -> Array:
        """The k largest singular values of every head at N tokens, (layer, head, k)."""
        return np.stack([law.singular_values(tokens, k) for law in self.unique])[self._where]

    @cached_property
    def unique(self) -> tuple[SpectralLaw, ...]:
        """The different laws."""
        return tuple({id(law): law for row in self.laws for law in row}.values())

    @cached_property
    def _where(self) -> np.ndarray:
        index = {id(law): i for i, law in enumerate(self.unique)}
        return np.array([[index[id(law)] for law in row] for row in self.laws])

    @cached_property
    def _table(self) -> PchipInterpolator:
        """ln of the ranks (law, rank) as a function of ln N."""
        dense, sparse = np.arange(LOG_RANGE[0], DENSE, 0.25 * STEP), np.arange(DENSE, LOG_RANGE[1], STEP)
        knots = np.concatenate([dense, sparse, LOG_RANGE[1:]])
        values = np.stack([_ranks(law, np.exp(knots)) for law in self.unique])
        return PchipInterpolator(knots, np.log(np.moveaxis(values, -1, 0)), axis=0)


def _ranks(law: SpectralLaw, tokens: Array) -> Array:
    ranks = law.ranks(tokens)
    return np.stack([ranks[name] for name in RANKS])
