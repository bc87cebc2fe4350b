"""How far an error in one layer's attention output reaches the outputs of the model, measured by perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from accel.layout import TokenLayout
from accel.outputs import output_difference
from accel.patch import patch, record
from accel.policies import Context, Exact, Frame, Policy
from accel.statistics import option_errors

SENSITIVITY_TOKENS = 512
"""Tokens of the images on which sensitivities are measured, at most about this many: 2 L forwards are run on them."""
_LEAST_SIDE = 4  # patches: the largest window of the default options
_FLOOR = 1e-3
"""Relative errors below this are taken as this in a sensitivity: a ratio of two roundings says nothing."""


def perturbations(options: Sequence[Policy], layout: TokenLayout) -> dict[str, Policy]:
    """The perturbing policies by kind: "frame", and as "subsample" the coarsest of the other options."""
    rest = [p for p in options if p.name not in ("exact", "frame")]
    kinds: dict[str, Policy] = {"frame": Frame()}
    if rest:
        kinds["subsample"] = min(rest, key=lambda p: p.keys_per_query(layout))
    return kinds


def sensitivity(
    model: nn.Module,
    images: Tensor,
    reference: dict[str, Tensor],
    errors: np.ndarray,
    policies: Sequence[Policy],
    advance: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Output difference (`accel.outputs`, total), and the same per relative attention error, each (layer, policy).

    images (1, S, 3, H, W) with their exact prediction `reference` and the attention error (layer, policy) of each
    policy. L forwards per policy, in each of which one layer runs one policy and the others are exact. Images of more
    than 512 tokens are reduced first: the gain is a ratio of relative errors, taken as independent of the resolution.
    """
    small = reduced(model, images, model.layout(images))
    if small is not images:
        reference, errors = exact_reference(model, small, policies)
    layout, depth = model.layout(small), len(errors)
    found = np.zeros(errors.shape)
    for layer in range(depth):
        for j, policy in enumerate(policies):
            alone = tuple(policy if i == layer else Exact() for i in range(depth))
            with patch(model, _Alone(layout, alone)):
                found[layer, j] = output_difference(reference, model(small))["total"]
            advance()
    return found, found / np.maximum(errors, _FLOOR)


@dataclass(frozen=True)
class _Alone:
    """A schedule with one policy in one layer and exact attention elsewhere."""

    layout: TokenLayout
    policies: tuple[Policy, ...]


def reduced(model: nn.Module, images: Tensor, layout: TokenLayout) -> Tensor:
    """The images, smaller where the probe has more than `SENSITIVITY_TOKENS` tokens, in multiples of the patch size."""
    if layout.tokens <= SENSITIVITY_TOKENS:
        return images
    patch_size = model.config.patch_size
    factor = (SENSITIVITY_TOKENS / layout.tokens) ** 0.5
    grid = [min(side, max(_LEAST_SIDE, round(side * factor))) for side in (layout.grid_h, layout.grid_w)]
    size = [side * patch_size for side in grid]
    small = F.interpolate(images[0], size, mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(0, 1)[None]


def exact_reference(
    model: nn.Module, images: Tensor, policies: Sequence[Policy]
) -> tuple[dict[str, Tensor], np.ndarray]:
    """The exact prediction on these images and each policy's attention error there, (layer, policy)."""
    found, layout = {}, model.layout(images)

    def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
        found[context.layer] = option_errors(q, k, v, layout, policies, context=context)

    with record(model, measure):
        prediction = model(images)
    return prediction, np.array([found[layer] for layer in sorted(found)])
