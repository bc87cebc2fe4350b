"""Output cosine of one attention layer for n -> infinity with beta = c ln n (docs/theory/dynamics.md, 1.4)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import N, beta, delta, g, own
from meanfield.derivations.long_context import RESULT as FINITE

rho, weight = sp.symbols("rho weight", positive=True)
cosine = sp.Symbol("cosine")


def _steps(candidate):
    # The others' weights vanish one by one, so delta -> weight, the token's own weight.
    limit = sp.limit(FINITE.claim.rhs.subs({g: 1 - rho, delta: weight}), N, sp.oo)
    yield Step("n -> infinity at a given own weight", limit, candidate)
    for factor, expected in ((sp.Rational(1, 2), 0), (1, sp.Rational(1, 2)), (2, 1)):
        # beta (1 - rho) = factor ln n
        at_scale = own.subs(beta, factor * sp.log(N) / g)
        limit = sp.limit(sp.powsimp(at_scale), N, sp.oo)
        yield Step(f"own weight at c = {factor}/(1 - rho)", limit, sp.sympify(expected))
    yield Step("at the threshold", candidate.subs(weight, sp.Rational(1, 2)), 4 * rho / (1 + 3 * rho))


RESULT = Derivation(
    statement="Limit of the output cosine; own weight 0, 1/2, 1 for c below, at, above 1/(1 - rho).",
    source="Theorem of arXiv:2510.05554",
    status="proved",
    claim=sp.Eq(cosine, rho / (rho + weight**2 * (1 - rho))),
    arguments=(rho, weight),
    steps=_steps,
)
