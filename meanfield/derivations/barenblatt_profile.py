"""The profile of the Barenblatt solution inside its support (docs/theory/diffusion.md, exact solutions)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

x = sp.Symbol("x", real=True)
R, mass, m = sp.symbols("R M m", positive=True)
u = sp.Symbol("u")


def _steps(candidate):
    n, y = sp.symbols("n y", positive=True)
    area = sp.beta(sp.Rational(1, 2), n + 1)
    yield Step(
        "(2n + 1)(1 - y^2)^n - 2n (1 - y^2)^{n-1} is the derivative of y (1 - y^2)^n, which vanishes at y = 1",
        sp.diff(y * (1 - y**2) ** n, y) / (1 - y**2) ** n,
        (2 * n + 1) - 2 * n / (1 - y**2),
    )
    yield Step(
        "so the area obeys (2n + 1) I_n = 2n I_{n-1}, which the Beta function solves",
        sp.gammasimp(((2 * n + 1) * area / area.subs(n, n - 1)).rewrite(sp.gamma)),
        2 * n,
    )
    yield Step("I_0 = 2", area.subs(n, 0).rewrite(sp.gamma), sp.Integer(2))
    for order, power in ((2, 1), (sp.Rational(3, 2), 2)):
        profile = candidate.subs(m, order).rewrite(sp.gamma)
        yield Step(f"mass M, m = {order}", sp.integrate(sp.expand(profile), (x, -R, R)), mass)
        expected = mass * (1 - x**2 / R**2) ** power / (R * area.subs(n, power).rewrite(sp.gamma))
        yield Step("the shape (1 - x^2/R^2)^{1/(m-1)}, for which barenblatt_radius solves the PDE", profile, expected)
    general = mass / (R * area) * (1 - x**2 / R**2) ** n
    yield Step("the same for every m = 1 + 1/n", candidate.subs(m, 1 + 1 / n), general)


RESULT = Derivation(
    statement="The Barenblatt solution of mass M with its edge at R, for |x| <= R.",
    source="Barenblatt 1952; docs/theory/diffusion.md, exact solutions",
    status="derived",
    claim=sp.Eq(u, mass / (R * sp.beta(sp.Rational(1, 2), m / (m - 1))) * (1 - x**2 / R**2) ** (1 / (m - 1))),
    arguments=(x, R, m, mass),
    steps=_steps,
)
