"""The solution of w' = -c w^{1+p} (docs/theory/diffusion.md, sense iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, w0, c, p = sp.symbols("t w_0 c p", positive=True)
width = sp.Symbol("w")


def _steps(candidate):
    yield Step("the equation", sp.diff(candidate, t) / candidate, -c * candidate**p)
    yield Step("the initial value", candidate.subs(t, 0), w0)
    haff = w0 / (1 + w0 * t * c)
    yield Step("p = 1 is Haff's law of granular cooling", candidate.subs(p, 1), haff)


RESULT = Derivation(
    statement="A width with w' = -c w^{1+p} decays as t^{-1/p}.",
    source="Haff 1983 for p = 1; docs/theory/diffusion.md, sense iv",
    status="derived",
    claim=sp.Eq(width, w0 * (1 + p * c * w0**p * t) ** (-1 / p)),
    arguments=(t, w0, c, p),
    steps=_steps,
)
