"""Explicit queries, keys and values on which a reduction is predicted or carried out, and the error of a reduction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from meanfield._checks import Array, finite

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AttentionSample:
    """One head: out_i = sum_j m_j e^{q_i.k_j} v_j / sum_j m_j e^{q_i.k_j}, dense in float64 (up to some 1e3 keys).

    queries (n, D), already multiplied by the scale D^{-1/2}; keys (N, D); values (N, C); log_mass (N,) = ln m_j, zero
    by default. Labels where a reduction needs them: groups (N,) of the keys that are merged or pooled, query_groups
    (n,), frames (N,) and query_frames (n,). ValueError names the first array whose shape or entries do not fit.
    """

    queries: Array
    keys: Array
    values: Array
    log_mass: Array | None = None
    groups: Labels | None = None
    query_groups: Labels | None = None
    frames: Labels | None = None
    query_frames: Labels | None = None

    def __post_init__(self) -> None:
        for name in ("queries", "keys", "values"):
            array = finite(name, getattr(self, name))
            if array.ndim != 2 or array.size == 0:
                raise ValueError(f"{name} has shape {array.shape}; give (tokens, channels) of one head, not empty")
            object.__setattr__(self, name, array)
        if self.queries.shape[1] != self.keys.shape[1]:
            raise ValueError(
                f"queries have {self.queries.shape[1]} channels, keys {self.keys.shape[1]}; make them agree"
            )
        n, count = len(self.queries), len(self.keys)
        if count < 2:
            raise ValueError(f"keys has {count} row; a reduction needs at least two keys")
        if self.log_mass is not None:
            mass = finite("log_mass", self.log_mass)
            if mass.ndim != 1:
                raise ValueError(f"log_mass has shape {mass.shape}; give one number ln m_j for each key, (N,)")
            object.__setattr__(self, "log_mass", mass)
        lengths = {"values": count, "log_mass": count, "groups": count, "frames": count}
        for name, length in (lengths | {"query_groups": n, "query_frames": n}).items():
            array = getattr(self, name)
            if array is None:
                continue
            if name in ("groups", "query_groups", "frames", "query_frames"):
                array = _labels(name, array)
                object.__setattr__(self, name, array)
            if len(array) != length:
                raise ValueError(f"{name} has {len(array)} entries for {length} tokens; give one for each token")

    @cached_property
    def logits(self) -> Array:
        """q_i.k_j + ln m_j, (n, N)."""
        logits = self.queries @ self.keys.T
        return logits if self.log_mass is None else logits + self.log_mass

    @cached_property
    def weights(self) -> Array:
        """The softmax A, (n, N)."""
        return softmax(self.logits, axis=1)

    @cached_property
    def outputs(self) -> Array:
        """The exact outputs o, (n, C)."""
        return self.weights @ self.values

    @cached_property
    def mean_value(self) -> Array:
        """vbar, (C,)."""
        return self.values.mean(0)

    def labels(self, name: str) -> Labels:
        """The labels `name`, or ValueError when the sample was built without them."""
        labels = getattr(self, name)
        if labels is None:
            raise ValueError(f"{name}=None; build the AttentionSample with {name} to use this reduction")
        return labels


@dataclass(frozen=True, eq=False)
class ReductionError:
    """Expected squared error |o_reduced - o|^2 in the units of |v|^2, (n,) and its mean, with their standard errors.

    The standard errors are zero for a formula, and for a reduction that draws nothing at random. The error of the mean
    is not that of independent queries: one draw of keys serves all queries.
    """

    per_query: Array
    per_query_se: Array
    mean: float
    mean_se: float

    @classmethod
    def exact(cls, per_query: Array) -> ReductionError:
        """The error of a formula or of a reduction without chance."""
        return cls(per_query, np.zeros_like(per_query), float(per_query.mean()), 0.0)

    @classmethod
    def of_draws(cls, draws: Array) -> ReductionError:
        """From squared errors (repeats, n)."""
        root = np.sqrt(len(draws))
        means = draws.mean(1)
        return cls(draws.mean(0), draws.std(0, ddof=1) / root, float(means.mean()), float(means.std(ddof=1) / root))


def _labels(name: str, value: NDArray) -> Labels:
    array = np.asarray(value)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}; give one integer for each token")
    return array.astype(np.int64)
