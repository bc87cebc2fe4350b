"""Predictors of what a policy costs in accuracy: relative rms error of a layer's attention output, (layer, option).

A predictor is `predictor(profile, layout, policies) -> ndarray (layer, option)` at `layout.frames` frames; theory,
measurement and a baseline differ by one argument of `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from accel.error_terms import class_measure, noise_factor
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.options import probed
from accel.patch import record
from accel.policies import Context, Policy
from accel.profile import Profile
from accel.sites import sites
from accel.statistics import CLASSES, VECTORS, option_errors
from meanfield.reductions import frame_ratio, mean_fill_error, shrinkage_error
from meanfield.reductions.displacements import squared_error

_OTHER = [CLASSES.index(name) for name in ("other_special", "other_patch")]
_OWN = [CLASSES.index(name) for name in ("self", "own_special", "own_patch")]


class Predictor(Protocol):
    """What `plan` asks of a predictor.

    carries: whether it knows the error of a temporal stride that was not probed. `plan` then offers longer strides by
    itself, to other predictors (or without this attribute) what was probed alone.
    """

    name: str
    carries: ClassVar[bool]

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray: ...


@dataclass(frozen=True)
class ConstantPredictor:
    """Nothing changes with the number of frames: the error measured at the probe. The baseline.

    AccelError for a policy that was not probed as it is, such as a longer temporal stride.
    """

    name: str = "constant"
    carries: ClassVar[bool] = False

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
        profile.check(layout)
        for policy in policies:
            was = probed(policy, profile.measured)
            if was != policy:
                raise AccelError(f"{policy} was probed as {was} only; probe with it, or use the theory predictor")
        return profile.option_error(policies)


@dataclass(frozen=True, eq=False)
class OraclePredictor:
    """The error measured on these images (1, S, 3, H, W) at full size, on the exact model's q, k, v: one forward."""

    model: nn.Module
    images: Tensor
    name: str = "oracle"
    carries: ClassVar[bool] = True

    def __call__(self, profile: Profile | None, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
        if layout != self.model.layout(self.images):
            raise AccelError(f"the oracle has images of {self.model.layout(self.images)}, asked for {layout}")
        found = np.zeros((len(sites(self.model)), len(policies)))

        def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
            found[context.layer] = option_errors(q, k, v, layout, policies, context=context)

        with torch.no_grad(), record(self.model, measure):
            self.model(self.images)
        return found


@dataclass(frozen=True)
class TheoryPredictor:
    """Closed forms on the probe's statistics, carried to S frames as sums over exchangeable frames.

    calibrated: error(S) = error measured at the probe x formula(S) / formula(S_0), so that what the formula leaves
    out cancels where it does not depend on S; else the formula itself.
    """

    calibrated: bool = True
    carries: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "theory" if self.calibrated else "theory (uncalibrated)"

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
        profile.check(layout)
        there = formula(profile, layout, policies)
        if not self.calibrated:
            return there
        here = formula(profile, profile.layout, [probed(policy, profile.measured) for policy in policies])
        ratio = np.divide(there, here, out=np.ones_like(there), where=here > 0)
        return profile.option_error(policies) * ratio


def formula(profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
    """Relative rms error (layer, option) of each policy at `layout.frames`, from class statistics and error terms."""
    found, measured = np.zeros((profile.layers, len(policies))), profile.measured
    was = [probed(policy, measured) for policy in policies]
    pairs = zip(policies, was, strict=True)
    factors = [noise_factor(p, layout) / (noise_factor(q, profile.layout) or 1.0) for p, q in pairs]
    for layer in range(profile.layers):
        statistics = class_statistics(profile, layer, layout)
        for j, policy in enumerate(policies):
            if policy.name == "exact":
                continue
            terms = profile.data["error_term"].values[layer, :, :, measured.index(was[j])].astype(np.float64)
            if np.isnan(terms).any():
                raise AccelError(
                    f"no error formula for policy {policy.name!r}; use the constant or the oracle predictor"
                )
            terms[..., :3] *= factors[j]
            found[layer, j] = statistics.error(policy, terms)
    return found


def own_mass(profile: Profile, layout: TokenLayout) -> np.ndarray:
    """Mean attention mass on the query's own frame at `layout.frames`, (layer,)."""
    found = []
    for layer in range(profile.layers):
        x = class_statistics(profile, layer, layout)
        share = x.mass[..., _OWN].sum(-1) / x.mass.sum(-1)
        found.append(float((share * x.weight).sum(-1).mean()))
    return np.array(found)


def class_statistics(profile: Profile, layer: int, layout: TokenLayout) -> ClassStatistics:
    """The statistics of one layer at `layout.frames`: sums over other frames scale with the number of these.

    For a query in frame 0 these are S - 1 frames, else S - 2 (frame 0 is a class of its own and does not scale). The
    mean per other frame, and what the query does in its own and in frame 0, are taken as unchanged: exact for
    exchangeable frames in expectation of the sums.
    """
    data = {name: profile.data[name].values[layer] for name in ("mass", "gram")}
    seen, frames = profile.layout.frames, layout.frames
    if frames != seen and seen < 3:
        raise AccelError(f"a probe of {seen} frames says nothing about {frames}; probe at least 3 frames")
    in_first, term_in_first = (
        profile.data[name].values < profile.layout.tokens_per_frame for name in ("query", "term_query")
    )
    if frames == seen:
        scale = np.ones(in_first.shape)
    else:  # frame_ratio is (S - 1)/(S_0 - 1); dropping frame 0 takes one frame from both
        scale = np.where(in_first, frame_ratio(seen, frames), frame_ratio(seen - 1, max(frames - 1, 1)))
    mass = data["mass"].copy()
    mass[..., _OTHER] *= scale[:, None]
    return ClassStatistics(
        layout=layout,
        mass=mass,
        gram=data["gram"].astype(np.float64),
        mean_key=np.exp(profile.data["patch_logit"].values[layer]),
        in_first=in_first,
        term_in_first=term_in_first,
        carried=frames != seen,
    )


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Class statistics of one layer at one layout; shapes as in `accel.statistics.query_statistics`, over (H, Q).

    mean_key: exp of the mean logit of a droppable patch, in the units of `mass`; in_first (Q,) and term_in_first (n,):
    which sampled queries, of the statistics and of the error terms, are in frame 0; carried: from another number of
    frames. An output is a vector of coefficients of VECTORS, (H, Q, vector).
    """

    layout: TokenLayout
    mass: np.ndarray
    gram: np.ndarray
    mean_key: np.ndarray
    in_first: np.ndarray
    term_in_first: np.ndarray
    carried: bool = False

    @property
    def weight(self) -> np.ndarray:
        """Share of all queries that a sampled one stands for, (Q,)."""
        return self._share(self.in_first)

    def _share(self, in_first: np.ndarray) -> np.ndarray:
        first = 1.0 / self.layout.frames
        return np.where(in_first, first / max(in_first.sum(), 1), (1.0 - first) / max((~in_first).sum(), 1))

    def error(self, policy: Policy, terms: np.ndarray) -> float:
        """Relative rms error of the layer's output, heads and queries together; terms (H, n, term) as in the profile.

        What the policy's mean measure moves follows from the class masses, what it moves within the classes from the
        terms; their squares are added.
        """
        exact = self.mixture(self.mass)
        squares = self._mean(self._square(self.limit(policy) - exact)) + self._grown(terms)
        lam = class_measure(policy, self.layout).shrinkage
        if lam is not None:
            squares = self._shrunk(lam, exact, squares)
        return float(np.sqrt(squares.mean() / max(self._mean(self._square(exact)).mean(), 1e-300)))

    def _mean(self, x: np.ndarray) -> np.ndarray:
        """Mean over the queries, (H, Q) -> (H,)."""
        return (x * self.weight).sum(-1)

    def _square(self, c: np.ndarray) -> np.ndarray:
        """|sum_a c_a vector_a|^2, (H, Q)."""
        return np.maximum(np.einsum("hqa,hqab,hqb->hq", c, self.gram, c), 0.0)

    def _grown(self, terms: np.ndarray) -> np.ndarray:
        """Squared error of the terms at this number of frames, mean over the queries: (H,)."""
        others = np.maximum(self.layout.frames - np.where(self.term_in_first, 1, 2), 0)
        parts = (squared_error(terms, others) * self._share(self.term_in_first)).sum(-1)
        if self.carried and parts[2].sum() < 0.0:  # a mean square, negative by chance only
            parts[2] = 0.0
        return np.maximum(parts.sum(0), 0.0)

    def mixture(self, mass: np.ndarray, mean_key: np.ndarray | float = 0.0) -> np.ndarray:
        """The output of keys of these masses per class, and a mean key with value `patch_mean`, normalised."""
        c = np.zeros(self.gram.shape[:3])
        c[..., : len(CLASSES)] = mass
        c[..., VECTORS.index("patch_mean")] = mean_key
        return c / c.sum(-1, keepdims=True)

    def limit(self, policy: Policy) -> np.ndarray:
        """The output of the policy's mean measure: every class has a share of its mass; coefficients (H, Q, vector).

        For frame attention it is what the policy computes: error (1 - rho)^2 |o_rest - o_own|^2, an identity
        (`meanfield.reductions.frame_error`).
        """
        found = class_measure(policy, self.layout)
        return self.mixture(self.mass * found.share[self.in_first.astype(int)], found.mean_key * self.mean_key)

    def _shrunk(self, lam: float | tuple[float, ...] | str, exact: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Squared error of lam o_S + (1 - lam) vbar, lam as given, or the optimum of each head: (H,)."""
        centre = np.zeros_like(exact)
        centre[..., VECTORS.index("mean")] = 1.0
        offset = self._mean(self._square(exact - centre))
        if lam == "fit":
            return shrinkage_error(offset, squares)
        return mean_fill_error(np.broadcast_to(lam, squares.shape), offset, squares)
