"""The error of attending to one part of the keys only (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

rho, offset = sp.symbols("rho offset2", positive=True)
error = sp.Symbol("error")


def _steps(candidate):
    # Any numbers of keys enter by the sums over both parts of their weights, and of their weighted values (vectors).
    own_mass, rest_mass = sp.symbols("W_own W_rest", positive=True)
    own_sum, rest_sum = (sp.Matrix(sp.symbols(f"{name}1:4", real=True)) for name in ("s", "r"))
    own, rest = own_sum / own_mass, rest_sum / rest_mass
    out = (own_sum + rest_sum) / (own_mass + rest_mass)
    mass = own_mass / (own_mass + rest_mass)
    yield Step("the output is the mixture of both parts", out, mass * own + (1 - mass) * rest)
    error_squared, offset_squared = (out - own).dot(out - own), (rest - own).dot(rest - own)
    yield Step(
        "squared distance in three channels",
        error_squared,
        candidate.subs({rho: mass, offset: offset_squared}, simultaneous=True),
    )


RESULT = Derivation(
    statement="Attention to the own frame, of mass rho, errs by (1 - rho)^2 |o_rest - o_own|^2: an identity.",
    source="docs/theory/reductions.md, frame attention",
    status="derived",
    claim=sp.Eq(error, (1 - rho) ** 2 * offset),
    arguments=(rho, offset),
    steps=_steps,
)
