"""The squared weight with which independent values enter the error of a kept set (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

rho, share = sp.symbols("rho P", positive=True)
ratio = sp.Symbol("R")


def _steps(candidate):
    weights = sp.symbols("A1:4", positive=True)
    kept, dropped = weights[:2], weights[2:]
    squares = sum(w**2 for w in weights)
    change = [w / sum(kept) - w for w in kept] + [-w for w in dropped]
    measured = {rho: sum(kept), share: sum(w**2 for w in kept) / squares}
    yield Step(
        "three keys of which two are kept",
        sum(c**2 for c in change) / squares,
        candidate.subs(measured, simultaneous=True),
    )
    s, x = sp.Symbol("s", positive=True), sp.Symbol("x", real=True)
    density = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    yield Step(
        "Gaussian logits: A^2 is tilted by 2s, so P = Phi(2s - z)",
        sp.exp(2 * s * x) * density / sp.exp(2 * s**2),
        density.subs(x, x - 2 * s),
    )


RESULT = Derivation(
    statement="Keeping mass rho and the share P of sum A^2 changes the weights by R sum A^2 in squared norm.",
    source="docs/theory/reductions.md, sparsity",
    status="derived",
    claim=sp.Eq(ratio, share * (1 / rho - 1) ** 2 + 1 - share),
    arguments=(rho, share),
    steps=_steps,
)
