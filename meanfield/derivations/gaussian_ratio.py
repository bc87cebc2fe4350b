"""The ratio of successive squared singular values between Gaussian queries and keys (docs/theory/spectra.md, 3.5).

Keys y ~ N(0, 1), queries z ~ N(0, c), K = exp(z y - z^2/2); written in one dimension, products of which the rest are.
"""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

c, x, b = sp.symbols("c x b", positive=True)
z, other, t, y = sp.symbols("z z' t y", real=True)
ratio = sp.Symbol("r")


def _steps(candidate):
    yield Step(
        "K(z, y) K(z', y) e^{-y^2/2} is e^{z z'} times a normal density of y around z + z', so K K^T is e^{z z'}",
        z * y - z**2 / 2 + other * y - other**2 / 2 - y**2 / 2,
        z * other - (y - z - other) ** 2 / 2,
        by=sp.expand,
    )
    growth = c / (1 - b * c)
    yield Step(
        "completing the square: E_z' e^{z z' + b z'^2/2 + t z'} is proportional to e^{growth (z + t)^2/2}",
        (z + t) * other + b * other**2 / 2 - other**2 / (2 * c),
        growth * (z + t) ** 2 / 2 - (other - growth * (z + t)) ** 2 / (2 * growth),
        by=sp.cancel,
    )
    rho = 1 / (1 + x)  # c = rho/(1 + rho^2) runs over (0, 1/2) as rho over (0, 1), and frees the square root
    free = {sp.sqrt(1 - 4 * c**2): (1 - rho**2) / (1 + rho**2)}
    value = sp.cancel(candidate.subs(free).subs(c, rho / (1 + rho**2)))
    inside = {c: rho / (1 + rho**2), b: value}
    yield Step("the square root is freed", 1 - 4 * inside[c] ** 2, free[sp.sqrt(1 - 4 * c**2)] ** 2, by=sp.cancel)
    yield Step("e^{b z^2/2} is reproduced: b = c/(1 - b c)", growth.subs(inside), value, by=sp.cancel)
    first = sp.diff(growth * (z + t) ** 2 / 2, t).subs(t, 0)
    yield Step(
        "the t term sends z e^{b z^2/2} to r times itself: r = b is the ratio",
        first.subs(inside),
        z * value,
        by=sp.cancel,
    )


RESULT = Derivation(
    statement=(
        "The squared singular values between one-dimensional Gaussian queries N(0, c) and keys N(0, 1) are geometric."
    ),
    source="docs/theory/spectra.md, 3.5",
    status="derived",
    claim=sp.Eq(ratio, 2 * c / (1 + sp.sqrt(1 - 4 * c**2))),
    arguments=(c,),
    steps=_steps,
)
