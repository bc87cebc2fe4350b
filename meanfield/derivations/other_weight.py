"""The attention that a token leaves to others when its own direction has several copies (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

share, x = sp.symbols("p x", positive=True)
weight = sp.Symbol("w")


def _steps(candidate):
    beta, gamma, copies, rest = sp.symbols("beta gamma n M", positive=True)
    own = copies * sp.exp(beta)
    others = rest * sp.exp(beta * gamma)
    measured = {share: copies / (copies + rest), x: beta * (1 - gamma)}
    yield Step(
        "softmax over n copies of the own direction and M keys at cosine gamma",
        others / (own + others),
        candidate.subs(measured, simultaneous=True),
    )
    curvature = 2 * sp.exp(x) * (sp.exp(x) - 1) / (1 + share * (sp.exp(x) - 1)) ** 3
    yield Step(
        "convex in the share for x > 0, so that unequal shares leave more to others (Jensen)",
        sp.diff(candidate, share, 2),
        curvature,
    )


RESULT = Derivation(
    statement="A token whose direction holds the share p of the keys, x = beta (1 - gamma) above the others' logit, "
    "leaves the weight w to others.",
    source="docs/theory/reductions.md, collapse",
    status="derived",
    claim=sp.Eq(weight, (1 - share) * sp.exp(-x) / (share + (1 - share) * sp.exp(-x))),
    arguments=(share, x),
    steps=_steps,
)
