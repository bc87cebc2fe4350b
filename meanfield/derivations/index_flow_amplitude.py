"""How a mode of the attention matrix decays over layers whose norm grows linearly (docs/theory/diffusion.md, ii)."""

import numpy as np
import sympy as sp
from scipy.special import gammaln
from sympy.codegen.cfunctions import log1p
from sympy.utilities.lambdify import implemented_function

from meanfield.derivations.derivation import Derivation, Step

layers, ratio, deficit = sp.symbols("L rho q", positive=True)
amplitude = sp.Symbol("a")

_STIRLING = 10.0
"""From here on six terms of Stirling's series are exact to rounding."""
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


def _log_excess(z, q):
    """ln Gamma(z) - ln Gamma(z - q) - q ln z, without the cancellation of the two logarithms at large z."""
    z, q = np.broadcast_arrays(np.asarray(z, dtype=np.float64), q)
    large = z - q >= _STIRLING
    w, p = np.where(large, z, _STIRLING), np.where(large, q, 0.0)
    series = -(w - p - 0.5) * np.log1p(-p / w) - p + _remainder(w) - _remainder(w - p)
    return np.where(large, series, gammaln(z) - gammaln(z - q) - q * np.log(z))


def _remainder(z):
    return np.polynomial.polynomial.polyval(z**-2.0, _SERIES) / z


log_excess = implemented_function("log_excess", _log_excess)


def _steps(candidate):
    plain = candidate.replace(log_excess, lambda z, q: sp.log(sp.gamma(z) / (sp.gamma(z - q) * z**q)))
    plain = plain.replace(log1p, lambda x: sp.log(1 + x))
    after = sp.gammasimp(sp.simplify(plain.subs(layers, layers + 1) / plain))
    gain = 1 / (ratio + layers)
    yield Step(
        "layer L multiplies the mode by 1 - q alpha/r_L, r_L = r_0 + alpha L, rho = r_0/alpha",
        after,
        1 - gain * deficit,
        by=lambda residual: sp.simplify(sp.powsimp(sp.gammasimp(residual), force=True)),
    )
    yield Step("one before the first layer", sp.simplify(plain.subs(layers, 0)), sp.Integer(1))


RESULT = Derivation(
    statement="Gamma(L+rho-q) Gamma(rho)/(Gamma(L+rho) Gamma(rho-q)): a mode (A - I) x = -q x after L explicit layers.",
    source="docs/theory/diffusion.md, sense ii",
    status="derived",
    claim=sp.Eq(
        amplitude,
        sp.exp(-deficit * log1p(layers / ratio) + log_excess(ratio, deficit) - log_excess(layers + ratio, deficit)),
    ),
    arguments=(layers, ratio, deficit),
    steps=_steps,
)
