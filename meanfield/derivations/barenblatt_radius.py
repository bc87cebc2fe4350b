"""The radius of the Barenblatt solution of the porous-medium equation (docs/theory/diffusion.md, exact solutions)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, kappa, R0, mass, m = sp.symbols("t kappa R_0 M m", positive=True)
R = sp.Symbol("R")
_area = sp.beta(sp.Rational(1, 2), m / (m - 1))


def _steps(candidate):
    # m = 1 + 1/n makes every exponent a positive number; area stands for int_{-1}^{1} (1 - y^2)^n dy.
    x = sp.Symbol("x", real=True)
    n, radius, area = sp.symbols("n radius area", positive=True)
    order = 1 + 1 / n
    shape = 1 - x**2 / radius**2
    height = mass / (radius * area)
    u = height * shape**n
    moving = candidate.subs(_area, area).subs(m, order)
    speed = sp.diff(moving ** (order + 1), t) / ((order + 1) * radius**order)
    yield Step(
        "u_t = kappa (u^m)_xx inside the support: u depends on t through R alone (both sides divided by shape^{n-1})",
        sp.expand(sp.simplify(speed * sp.diff(u, radius) / shape ** (n - 1))),
        sp.expand(sp.simplify(kappa * sp.diff(height**order * shape ** (n + 1), x, 2) / shape ** (n - 1))),
    )
    yield Step("the radius at t = 0", sp.powdenest(moving.subs(t, 0), force=True), R0)


RESULT = Derivation(
    statement="The Barenblatt solution of u_t = kappa (u^m)_xx in one dimension, m > 1, mass M, has its edge at R(t).",
    source="Barenblatt 1952; docs/theory/diffusion.md, exact solutions",
    status="derived",
    claim=sp.Eq(
        R,
        (R0 ** (m + 1) + 2 * kappa * m * (m + 1) / (m - 1) * (mass / _area) ** (m - 1) * t) ** (1 / (m + 1)),
    ),
    arguments=(t, R0, m, mass, kappa),
    steps=_steps,
)
