"""Predictors of what a policy costs in accuracy: relative rms error of a layer's attention output, (layer, option).

A predictor is `predictor(profile, layout, policies) -> ndarray (layer, option)` at `layout.frames` frames; theory,
measurement and a baseline differ by one argument of `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.patch import record
from accel.policies import Context, Policy, Subsample
from accel.profile import Profile
from accel.sites import sites
from accel.statistics import CLASSES, PATCH_CLASSES, VECTORS, option_errors
from meanfield.reductions import frame_error, frame_ratio, shrinkage_error, subsample_error

_PATCH = [CLASSES.index(name) for name in PATCH_CLASSES]
_SQUARED = [VECTORS.index(f"{name}_squared") for name in PATCH_CLASSES]
_OTHER = [CLASSES.index(name) for name in ("other_special", "other_patch")]
_OWN = [CLASSES.index(name) for name in ("self", "own_special", "own_patch")]


class Predictor(Protocol):
    """What `plan` asks of a predictor."""

    name: str

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray: ...


@dataclass(frozen=True)
class ConstantPredictor:
    """Nothing changes with the number of frames: the error measured at the probe. The baseline."""

    name: str = "constant"

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
        profile.check(layout)
        return profile.option_error(policies)


@dataclass(frozen=True, eq=False)
class OraclePredictor:
    """The error measured on these images (1, S, 3, H, W) at full size, on the exact model's q, k, v: one forward."""

    model: nn.Module
    images: Tensor
    name: str = "oracle"

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
    """Closed forms on the probe's class statistics, carried to S frames as sums over exchangeable frames.

    calibrated: error(S) = error measured at the probe x formula(S) / formula(S_0), so that what the formula leaves
    out (a grid errs less than random keys) cancels where it does not depend on S; else the formula itself.
    """

    calibrated: bool = True

    @property
    def name(self) -> str:
        return "theory" if self.calibrated else "theory (uncalibrated)"

    def __call__(self, profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
        profile.check(layout)
        there = formula(profile, layout, policies)
        if not self.calibrated:
            return there
        here = formula(profile, profile.layout, policies)
        ratio = np.divide(there, here, out=np.ones_like(there), where=here > 0)
        return profile.option_error(policies) * ratio


def formula(profile: Profile, layout: TokenLayout, policies: Sequence[Policy]) -> np.ndarray:
    """Relative rms error (layer, option) of each policy at `layout.frames`, from the class statistics alone."""
    found = np.zeros((profile.layers, len(policies)))
    for layer in range(profile.layers):
        statistics = class_statistics(profile, layer, layout)
        for j, policy in enumerate(policies):
            found[layer, j] = 0.0 if policy.name == "exact" else statistics.error(policy)
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
    data = {name: profile.data[name].values[layer] for name in ("mass", "squared", "square_energy", "gram")}
    seen, frames = profile.layout.frames, layout.frames
    in_first = profile.data["query"].values < profile.layout.tokens_per_frame
    if frames == seen:
        scale = np.ones(in_first.shape)
    elif seen < 3:
        raise AccelError(f"a probe of {seen} frames says nothing about {frames}; probe at least 3 frames")
    else:  # frame_ratio is (S - 1)/(S_0 - 1); dropping frame 0 takes one frame from both
        scale = np.where(in_first, frame_ratio(seen, frames), frame_ratio(seen - 1, max(frames - 1, 1)))
    mass, squared = data["mass"].copy(), data["squared"].copy()
    mass[..., _OTHER] *= scale[:, None]
    squared[..., PATCH_CLASSES.index("other_patch")] *= scale
    if frames == 1:  # only frame 0 is left
        in_first_weight = 1.0
    else:
        in_first_weight = 1.0 / frames
    share = np.where(in_first, in_first_weight / in_first.sum(), (1 - in_first_weight) / (~in_first).sum())
    return ClassStatistics(
        layout=layout,
        mass=mass,
        squared=squared,
        square_energy=data["square_energy"],
        gram=data["gram"].astype(np.float64),
        mean_key=np.exp(profile.data["patch_logit"].values[layer]),
        in_first=in_first,
        weight=share,
        common=float(np.clip(profile.data["shared_noise"].values.mean(), 0.0, 1.0)),
    )


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Class statistics of one layer at one layout; shapes as in `accel.statistics.query_statistics`, over (H, Q).

    mean_key: exp of the mean logit of a droppable patch, in the units of `mass`; weight (Q,): share of all queries
    that a sampled one stands for; common: `shared_noise`, mean over layers (one layer's is too noisy). An output is a
    vector of coefficients of VECTORS, (H, Q, vector).
    """

    layout: TokenLayout
    mass: np.ndarray
    squared: np.ndarray
    square_energy: np.ndarray
    gram: np.ndarray
    mean_key: np.ndarray
    in_first: np.ndarray
    weight: np.ndarray
    common: float = 0.0

    def error(self, policy: Policy) -> float:
        """Relative rms error of the layer's output, heads and queries together."""
        exact = self.mixture(self.mass)
        if policy.name == "frame":
            squares = self._frame(exact)
        elif isinstance(policy, Subsample):
            squares = self._subsample(policy, exact)
        else:
            raise AccelError(f"no error formula for policy {policy.name!r}; use the constant or the oracle predictor")
        return float(np.sqrt(self._mean(squares) / max(self._mean(self._square(exact)), 1e-300)))

    def _mean(self, x: np.ndarray) -> float:
        return float((x * self.weight).sum(-1).mean())

    def _square(self, c: np.ndarray) -> np.ndarray:
        """|sum_a c_a vector_a|^2, (H, Q)."""
        return np.maximum(np.einsum("hqa,hqab,hqb->hq", c, self.gram, c), 0.0)

    def mixture(self, mass: np.ndarray, mean_key: np.ndarray | float = 0.0) -> np.ndarray:
        """The output of keys of these masses per class, and a mean key with value `patch_mean`, normalised."""
        c = np.zeros(self.gram.shape[:3])
        c[..., : len(CLASSES)] = mass
        c[..., VECTORS.index("patch_mean")] = mean_key
        return c / c.sum(-1, keepdims=True)

    def _frame(self, exact: np.ndarray) -> np.ndarray:
        own, rest = np.zeros_like(self.mass), self.mass.copy()
        own[..., _OWN], rest[..., _OWN] = self.mass[..., _OWN], 0.0
        kept = exact[..., _OWN].sum(-1)
        if not rest.any():
            return np.zeros_like(kept)
        return frame_error(np.minimum(kept, 1.0), self._square(self.mixture(own) - self.mixture(rest)))

    def limit(self, policy: Subsample) -> tuple[np.ndarray, np.ndarray]:
        """What the policy computes when the kept patch of a window is like the dropped ones, and its kept classes.

        Coefficients (H, Q, vector), and for each query and patch class whether it is thinned, (Q, patch class).
        "none" gives thinned classes a share f of their mass, "published" and "count" add the mean key, the others
        restore the mass: then the limit is the exact output.
        """
        thinned = np.stack(
            [
                ~self.in_first | (not policy.keep_first_frame),
                np.full_like(self.in_first, not policy.keep_first_frame),
                np.full_like(self.in_first, True),
            ],
            -1,
        )
        if policy.fill in ("mass", "shrink"):
            return self.mixture(self.mass), thinned
        mass = self.mass.copy()
        mass[..., _PATCH] *= np.where(thinned, self._fraction(policy), 1.0)
        dropped = self.layout.tokens - policy.kept_keys(self.layout)
        weight = {"none": 0.0, "published": min(1.0, dropped), "count": float(dropped)}[policy.fill]
        return self.mixture(mass, weight * self.mean_key), thinned

    def _fraction(self, policy: Subsample) -> float:
        """Share of the patches of a thinned frame that is kept."""
        rows, columns = policy.window
        grid_h, grid_w = self.layout.grid_h, self.layout.grid_w
        return ceil(grid_h / rows) * ceil(grid_w / columns) / (grid_h * grid_w)

    def _subsample(self, policy: Subsample, exact: np.ndarray) -> np.ndarray:
        """Squared bias of the limit plus sampling noise, as if the kept patches of a frame were drawn at random.

        Noise of "mass" and "shrink": ((1-f)/f) sum over thinned keys of A^2 |v - o|^2; of the others f(1-f) times the
        same sum about their own limit, in units of their own normaliser. All times 1 + (n - 1) common for n thinned
        frames, whose errors agree since they share the grid.
        """
        f = self._fraction(policy)
        limit, thinned = self.limit(policy)
        spread = (self._spread(limit) * thinned).sum(-1)
        restored = policy.fill in ("mass", "shrink")
        total = self.mass.sum(-1)
        if restored:
            noise = subsample_error(f, spread / total**2)
        else:
            # limit[self] = mass[self] / normaliser; the self class is never empty
            normaliser = self.mass[..., 0] / np.maximum(limit[..., 0], 1e-300)
            noise = f * f * subsample_error(f, spread / np.maximum(normaliser, 1e-300) ** 2)
        thinned_frames = self.layout.frames - policy.keep_first_frame
        squares = self._square(limit - exact) + noise * (1.0 + (thinned_frames - 1) * self.common)
        return self._shrunk(policy, exact, squares) if policy.fill == "shrink" else squares

    def _spread(self, c: np.ndarray) -> np.ndarray:
        """sum_j A_ij^2 |v_j - o|^2 over each patch class, o given by its coefficients: (H, Q, patch class)."""
        product = np.einsum("hqab,hqb->hqa", self.gram, c)
        about = self.square_energy - 2.0 * product[..., _SQUARED] + self._square(c)[..., None]
        return self.squared * np.maximum(about, 0.0)

    def _shrunk(self, policy: Subsample, exact: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Squared error of lam o_S + (1 - lam) vbar, lam as given, or the optimum of each head."""
        centre = np.zeros_like(exact)
        centre[..., VECTORS.index("mean")] = 1.0
        offset = self._square(exact - centre)
        b2, mse = ((x * self.weight).sum(-1, keepdims=True) for x in (offset, squares))
        if policy.shrinkage is None:
            best = shrinkage_error(b2, mse)
            return np.divide(best, mse, out=np.zeros_like(mse), where=mse > 0) * squares
        lam = np.broadcast_to(np.reshape(policy.shrinkage, (-1, 1)), (len(squares), 1))
        return lam**2 * squares + (1.0 - lam) ** 2 * offset
