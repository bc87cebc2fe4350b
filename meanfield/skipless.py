"""Attention without skip connection, MLP or LayerNorm, x <- A x: distances are cubed in every layer.

For N tokens at equal norms and equal distances Delta, V = I and logits beta x_i . x_j,

    Delta' = Delta (1 - e^{-beta Delta^2/2})/(1 + (N - 1) e^{-beta Delta^2/2}) ~ beta Delta^3/(2N),

so that L layers raise a small distance to the power 3^L: the doubly exponential law whose bound is arXiv:2103.03404.
Source: docs/theory/dynamics.md 1.8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from meanfield._checks import Array, attractive, count, evaluated, in_range, scalar, token_count
from meanfield.derivations.dong_cubic import RESULT as CUBIC
from meanfield.derivations.gaussian_skipless import RESULT as GAUSSIAN
from meanfield.derivations.skipless_difference import RESULT as EXACT

_RESCALE = "measure lengths in another unit"


def skipless_distance(distance: ArrayLike, beta: ArrayLike, tokens: ArrayLike) -> Array:
    """Distance |x_i - x_j| after one layer, exact for equidistant tokens of equal norm; broadcast shape.

    ValueError unless Delta >= 0, beta >= 0, N >= 1.
    """
    return evaluated("the distance", EXACT.function, *_cloud(distance, beta), token_count(tokens), remedy=_RESCALE)


def cubic_distance(distance: ArrayLike, beta: ArrayLike, tokens: ArrayLike) -> Array:
    """beta Delta^3/(2N), the limit beta Delta^2 << 1 of `skipless_distance`, relative error up to beta Delta^2/4.

    ValueError as there.
    """
    return evaluated("the distance", CUBIC.function, *_cloud(distance, beta), token_count(tokens), remedy=_RESCALE)


def skipless_layers(distance: float, beta: float, tokens: float, layers: int) -> Array:
    """Distances (layers + 1) before the first layer and after each. Exact; 0 once float64 underflows.

    ValueError as in `skipless_distance`, or for anything but numbers and a count of layers.
    """
    b = scalar("beta", attractive(beta), remedy="give one logit")
    n = scalar("N", tokens, 1.0, remedy="give the number of tokens")
    found = [scalar("distance", distance, 0.0, remedy="a distance is not negative")]
    for _ in range(count("layers", layers, remedy="give the number of layers")):
        found.append(float(skipless_distance(found[-1], b, n)))
    return np.array(found)


def gaussian_skipless(deviation: ArrayLike, beta: ArrayLike) -> Array:
    """Standard deviation beta sigma^3 after one layer on infinitely many Gaussian tokens. Exact at N = infinity.

    For finite N it needs rows that have not condensed, (beta sigma^2)^2 < ln(N)/2. ValueError on negative values.
    """
    return evaluated("the deviation", GAUSSIAN.function, *_cloud(deviation, beta), remedy=_RESCALE)


def _cloud(distance: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    return in_range("distance", distance, 0.0, remedy="a distance is not negative"), attractive(beta)
