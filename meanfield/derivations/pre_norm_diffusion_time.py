"""The total diffusion of Pre-LN, whose diffusivity falls as the norm grows (docs/theory/diffusion.md, sense ii)."""

import sympy as sp
from sympy.codegen.cfunctions import log1p

from meanfield.derivations.derivation import Derivation, Step

t, alpha, kappa, r0 = sp.symbols("t alpha kappa r_0", positive=True)
total = sp.Symbol("T")


def _steps(candidate):
    plain = candidate.replace(log1p, lambda z: sp.log(1 + z))
    diffusivity = alpha * kappa / (r0 + alpha * t)
    yield Step("its derivative is D(t) = alpha kappa/r(t) with r = r_0 + alpha t", sp.diff(plain, t), diffusivity)
    yield Step("nothing has diffused at t = 0", plain.subs(t, 0), sp.Integer(0))


RESULT = Derivation(
    statement="The integral of D(t) = alpha kappa/(r_0 + alpha t) from 0 to t grows like a logarithm.",
    source="docs/theory/diffusion.md, sense ii",
    status="derived",
    claim=sp.Eq(total, kappa * log1p(alpha * t / r0)),
    arguments=(t, alpha, kappa, r0),
    steps=_steps,
)
