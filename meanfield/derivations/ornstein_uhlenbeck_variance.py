"""The variance of a Gaussian under diffusion and a linear pull (docs/theory/diffusion.md, exact solutions)."""

import sympy as sp
from sympy.codegen.cfunctions import expm1

from meanfield.derivations.derivation import Derivation, Step

t, diffusivity, theta, s0 = sp.symbols("t D theta s_0", positive=True)
variance = sp.Symbol("s")


def _steps(candidate):
    plain = candidate.replace(expm1, lambda z: sp.exp(z) - 1)
    yield Step("s' = 2 D - 2 theta s (heat_kernel)", sp.diff(plain, t), 2 * diffusivity - 2 * theta * plain)
    yield Step("s(0) = s_0", plain.subs(t, 0), s0)


RESULT = Derivation(
    statement="Variance of the Gaussian solution of u_t = D u_xx + theta (x u)_x.",
    source="docs/theory/diffusion.md, exact solutions",
    status="derived",
    claim=sp.Eq(variance, s0 * sp.exp(-2 * theta * t) - diffusivity / theta * expm1(-2 * theta * t)),
    arguments=(t, s0, diffusivity, theta),
    steps=_steps,
)
