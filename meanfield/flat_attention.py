"""Pre-LN with flat attention (beta = 0, or any beta as N -> infinity): the equiangular flow solved exactly.

Source: docs/theory/dynamics.md 2.1.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from meanfield._checks import scalar
from meanfield.derivations.implicit_law import RESULT as IMPLICIT
from meanfield.equiangular import Equiangular


def flat_attention_norm(system: Equiangular, time: float) -> float:
    """Norm r(t) of the exact Pre-LN solution at beta = 0, to which any beta tends as N -> infinity; g = g_0 r_0^2/r^2.

    r - c artanh(c/r) = alpha t + r_0 - c artanh(c/r_0), c^2 = (N - 1) r_0^2 g_0/N. `system.beta` is not used.
    ValueError when g_0 is not below N/(N - 1) (already refused by Equiangular) or t < 0.
    """
    scaled = system.gain * scalar("time", time, 0.0, remedy="time starts at 0")
    r = float(system.norm)
    c = r * np.sqrt((system.tokens - 1.0) / system.tokens * system.spread)
    scalar("c/r_0", c / r, 0.0, np.nextafter(1.0, 0.0), remedy="without a mean nothing grows; lower the spread")

    def excess(radius):
        return IMPLICIT.function(radius, r, c) - scaled

    # |theta.A| <= 1 bounds the growth, so the root lies in [r_0, r_0 + alpha t], or is its end within rounding.
    end = r + scaled
    return end if excess(end) <= 0.0 else float(brentq(excess, r, end, xtol=1e-13 * r, rtol=1e-14))
