"""Where the p-th moment of a softmax row condenses on its largest logit (docs/theory/finite_n.md, condensation)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

p, N, s = sp.symbols("p N s", positive=True)
l = sp.Symbol("l", real=True)
variance = sp.Symbol("s2")


def _steps(candidate):
    log_density = -(l**2) / (2 * s**2)
    dominant = sp.solve(sp.diff(p * l + log_density, l), l)[0]
    yield Step("E e^{pl} comes from logits about p s^2", dominant, p * s**2)
    edge = s * sp.sqrt(2 * sp.log(N))
    yield Step(
        "the largest of N logits: N e^{-l^2/(2 s^2)} = 1", (sp.log(N) + log_density).subs(l, edge), sp.Integer(0)
    )
    threshold = sp.solve(sp.Eq(dominant / s, edge / s), s)[0]
    yield Step("both meet at s^2", threshold**2, candidate)


RESULT = Derivation(
    statement="sum e^{pl} over N logits N(0, s^2) is carried by its largest terms for s^2 > 2 ln N/p^2, large N.",
    source="docs/theory/finite_n.md, condensation; Derrida 1981",
    status="derived",
    claim=sp.Eq(variance, 2 * sp.log(N) / p**2),
    arguments=(p, N),
    steps=_steps,
)
