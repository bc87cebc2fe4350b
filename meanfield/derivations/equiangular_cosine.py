"""Velocity of the cosine of equiangular tokens under every normalisation (docs/theory/dynamics.md, 1.1 and 1.2)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.equiangular_radial import (
    N,
    attended_first,
    attended_second,
    first,
    g,
    inner,
    other,
    second,
)

kappa, s = sp.symbols("kappa s", positive=True)
r = sp.Symbol("r", positive=True)
velocity = sp.Symbol("velocity")


def _steps(candidate):
    claimed = candidate.subs({kappa: N * other, s: 1})
    tangential = [
        attended - inner(token, attended) * token
        for token, attended in ((first, attended_first), (second, attended_second))
    ]
    chain_rule = inner(tangential[0], second) + inner(first, tangential[1])
    yield Step("(theta_i . theta_j)' with theta_i' = P_theta A_i", chain_rule, claimed)
    # Pre-LN moves x = r theta with x' = A; its direction obeys the same law at speed 1/r.
    radius = inner(first, attended_first)
    direction = (attended_first - radius * first) / r
    yield Step("x' = A with x = r theta gives theta' = P_theta A / r", direction, tangential[0] / r)
    yield Step("so that s divides the velocity", chain_rule / r, candidate.subs({kappa: N * other, s: r}))


RESULT = Derivation(
    statement="theta_i' = P_theta_i A_i / s keeps tokens equiangular and moves their cosine with this velocity.",
    source="docs/theory/dynamics.md, 1.2; arXiv:2312.10794, arXiv:2510.22026",
    status="derived",
    claim=sp.Eq(velocity, 2 * kappa * g * (1 - (N - 1) * g / N) / s),
    arguments=(g, kappa, N, s),
    steps=_steps,
)
