"""Where equiangular tokens collapse at half the full rate (docs/theory/reductions.md)."""

import sympy as sp
from sympy.codegen.cfunctions import log1p

from meanfield.derivations.contraction import RESULT as CONTRACTION
from meanfield.derivations.contraction import N, beta, g
from meanfield.derivations.derivation import Derivation, Step

tokens = sp.Symbol("n", positive=True)
threshold = sp.Symbol("x")


def _steps(candidate):
    kappa = 1 - CONTRACTION.claim.rhs.subs(N, tokens)
    yield Step("kappa = 1/2", kappa.subs(beta, candidate / g), sp.Rational(1, 2))
    yield Step(
        "kappa = n/(n + e^{beta g} - 1), so that fewer tokens contract less",
        kappa,
        tokens / (tokens + sp.exp(beta * g) - 1),
    )


RESULT = Derivation(
    statement="n equiangular tokens collapse at half the rate of uniform attention at beta (1 - gamma) = ln(1 + n).",
    source="docs/theory/reductions.md, collapse",
    status="derived",
    claim=sp.Eq(threshold, log1p(tokens)),
    arguments=(tokens,),
    steps=_steps,
)
