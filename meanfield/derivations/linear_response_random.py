"""Depth exponent of a mode under blocks with random maps (docs/theory/dynamics.md, 2.2)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.linear_response_coherent import Lambda_0, Lambda_k
from meanfield.derivations.random_v import RESULT as GROWTH
from meanfield.derivations.random_v import coherence, eigenvalue, step

exponent = sp.Symbol("exponent")


def _steps(candidate):
    a, r = sp.symbols("a r", positive=True)
    L = sp.Symbol("L", positive=True)
    E = sp.Function("E")
    growth = GROWTH.claim.rhs.subs({coherence: 0, step: a / r})
    yield Step("d ln E_k/dL = Lambda_k/r^2, Lambda = sum alpha^2 lambda^2", r**2 * (growth - 1), a**2 * eigenvalue**2)
    # The mean carries r: (r^2)' = Lambda_0.
    norm = Lambda_0 * L
    solution = sp.dsolve(E(L).diff(L) - Lambda_k / norm * E(L), E(L)).rhs
    share = solution / norm
    yield Step("-d ln(E_k/r^2)/d ln L", -L * sp.diff(share, L) / share, candidate)


RESULT = Derivation(
    statement="E_k/E_0 ~ L^-exponent for blocks with fresh random maps, Lambda_k = sum of alpha^2 lambda_k^2.",
    source="docs/theory/dynamics.md, 2.2",
    status="derived",
    claim=sp.Eq(exponent, 1 - Lambda_k / Lambda_0),
    arguments=(Lambda_k, Lambda_0),
    steps=_steps,
)
