"""One attention layer without skip connection on equidistant tokens (docs/theory/dynamics.md, 1.8)."""

import sympy as sp
from sympy.codegen.cfunctions import expm1

from meanfield.derivations.derivation import Derivation, Step

distance, beta, N = sp.symbols("Delta beta N", positive=True)
after = sp.Symbol("Delta_next")


def _steps(candidate):
    q = sp.Symbol("q", positive=True)
    # Tokens of squared norm q and products p = q - Delta^2/2; the logits are beta x_i . x_j, nothing is normalised.
    p = q - distance**2 / 2
    normaliser = sp.exp(beta * q) + (N - 1) * sp.exp(beta * p)
    own, other = sp.exp(beta * q) / normaliser, sp.exp(beta * p) / normaliser
    # Both outputs weigh every third token alike: they differ by (own - other)(x_i - x_j).
    gram = sp.Matrix([[q, p], [p, q]])
    difference = sp.Matrix([own - other, other - own])
    yield Step("squared distance of two outputs", (difference.T * gram * difference)[0], candidate**2)
    yield Step("contraction", (own - other) * distance, candidate)


RESULT = Derivation(
    statement="Distance of two outputs of x <- A x (V = I, logits beta x_i . x_j), N equal norms and distances.",
    source="docs/theory/dynamics.md, 1.8",
    status="derived",
    claim=sp.Eq(
        after,
        -distance * expm1(-beta * distance**2 / 2) / (1 + (N - 1) * sp.exp(-beta * distance**2 / 2)),
    ),
    arguments=(distance, beta, N),
    steps=_steps,
)
