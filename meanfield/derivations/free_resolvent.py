"""The resolvent of independent entries without heavy tails (docs/theory/finite_n.md, condensation)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.finite_n_law import RESULT as FINITE_N_LAW
from meanfield.derivations.finite_n_law import theta

v = sp.Symbol("v", positive=True)
h = sp.Symbol("h")


def _steps(candidate):
    yield Step("h = 1/(1 + v h)", candidate * (1 + v * candidate), sp.Integer(1))
    yield Step("the root that is 1 at v = 0", candidate.subs(v, 0), sp.Integer(1))
    stretched = theta * sp.exp(FINITE_N_LAW.claim.rhs)
    yield Step("it is the free law of many equal modes, theta = 1 - h", stretched.subs(theta, 1 - candidate), v)


RESULT = Derivation(
    statement="h = 1/(1 + v h) has the root 2/(1 + sqrt(1 + 4v)), v = theta/(1 - theta)^2 at theta = 1 - h.",
    source="docs/theory/finite_n.md, condensation",
    status="derived",
    claim=sp.Eq(h, 2 / (1 + sp.sqrt(1 + 4 * v))),
    arguments=(v,),
    steps=_steps,
)
