"""The error of any kept set of keys is at most ((1 - rho)/rho) V_A (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

rho, V = sp.symbols("rho V", positive=True)
bound = sp.Symbol("bound")


def _steps(candidate):
    kept, dropped = sp.symbols("o_K o_D", real=True)
    spread_kept, spread_dropped = sp.symbols("V_K V_D", nonnegative=True)
    out = rho * kept + (1 - rho) * dropped
    error = (out - kept) ** 2
    between = rho * (kept - out) ** 2 + (1 - rho) * (dropped - out) ** 2
    yield Step("sharp: equality when kept and dropped keys have one value each", candidate.subs(V, between), error)
    within = rho * spread_kept + (1 - rho) * spread_dropped
    yield Step(
        "variance within and between: the bound exceeds the error by terms that are not negative",
        candidate.subs(V, within + between) - error,
        (1 - rho) * spread_kept + (1 - rho) ** 2 / rho * spread_dropped,
    )


RESULT = Derivation(
    statement="Attention to keys of mass rho, renormalised, errs by at most ((1 - rho)/rho) V_A, with equality for two "
    "values.",
    source="docs/theory/reductions.md, sparsity",
    status="derived",
    claim=sp.Eq(bound, (1 - rho) / rho * V),
    arguments=(rho, V),
    steps=_steps,
)
