"""Depth exponent of a mode under coherent blocks (docs/theory/dynamics.md, 2.2)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.random_v import RESULT as GROWTH
from meanfield.derivations.random_v import coherence, eigenvalue, step

Lambda_k, Lambda_0 = sp.symbols("Lambda_k Lambda_0", positive=True)
exponent = sp.Symbol("exponent")


def _steps(candidate):
    c, a, r = sp.symbols("c a r", positive=True)
    L = sp.Symbol("L", positive=True)
    E = sp.Function("E")
    # One block, to first order in alpha/r; the blocks of a layer add up to Lambda = sum c alpha lambda.
    growth = GROWTH.claim.rhs.subs({coherence: c, step: a / r})
    first_order = sp.limit(r * (growth - 1), r, sp.oo)
    yield Step("d ln E_k/dL = 2 Lambda_k/r", first_order, 2 * c * a * eigenvalue)
    # The mean carries r: (r^2)' = 2 Lambda_0 r, so r = Lambda_0 L.
    solution = sp.dsolve(E(L).diff(L) - 2 * Lambda_k / (Lambda_0 * L) * E(L), E(L)).rhs
    norm = (Lambda_0 * L) ** 2
    share = solution / norm
    yield Step("-d ln(E_k/r^2)/d ln L", -L * sp.diff(share, L) / share, candidate)
    yield Step("r^2 solves its own law", sp.diff(norm, L), 2 * Lambda_0 * sp.sqrt(norm))


RESULT = Derivation(
    statement="E_k/E_0 ~ L^-exponent for coherent blocks, Lambda_k = sum over blocks of c alpha lambda_k.",
    source="docs/theory/dynamics.md, 2.2",
    status="derived",
    claim=sp.Eq(exponent, 2 * (1 - Lambda_k / Lambda_0)),
    arguments=(Lambda_k, Lambda_0),
    steps=_steps,
)
