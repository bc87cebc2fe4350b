"""Depth exponent of the between-frame variance under alternating attention (docs/theory/dynamics.md, 2.2 E)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.pre_ln_recursion import RESULT as GROWTH
from meanfield.derivations.pre_ln_recursion import eigenvalue, step

gain_global, gain_frame = sp.symbols("a_g a_f", positive=True)
exponent = sp.Symbol("exponent")


def _steps(candidate):
    r, L, c = sp.symbols("r L c", positive=True)
    # Eigenvalues near collapse: frame attention keeps the mean and the frame means, global attention only the mean.
    layer = [
        GROWTH.claim.rhs.subs({step: gain_frame / r, eigenvalue: 1})
        * GROWTH.claim.rhs.subs({step: gain_global / r, eigenvalue: kept})
        for kept in (1, 0)
    ]
    mean_rate, between_rate = (sp.limit(r * (growth - 1), r, sp.oo) for growth in layer)
    M, D = sp.Function("M"), sp.Function("D")
    norm = c * L
    mean = sp.dsolve(M(L).diff(L) - mean_rate / norm * M(L), M(L)).rhs
    slope = L * sp.diff(mean, L) / mean
    speed = sp.solve(slope - 2, c)[0]
    yield Step("r^2 ~ M grows as L^2: r = (a_f + a_g) L", speed, gain_frame + gain_global)
    between = sp.dsolve(D(L).diff(L) - between_rate / (speed * L) * D(L), D(L)).rhs
    share = between / (speed * L) ** 2
    yield Step("-d ln(D_b/r^2)/d ln L", -L * sp.diff(share, L) / share, candidate)
    yield Step("equal gains", candidate.subs(gain_frame, gain_global), sp.Integer(1))


RESULT = Derivation(
    statement="D_b/r^2 ~ L^-exponent under alternating coherent frame and global attention (V = c I + ..., c > 0).",
    source="docs/theory/dynamics.md, 2.2 E",
    status="derived",
    claim=sp.Eq(exponent, 2 * gain_global / (gain_global + gain_frame)),
    arguments=(gain_global, gain_frame),
    steps=_steps,
)
