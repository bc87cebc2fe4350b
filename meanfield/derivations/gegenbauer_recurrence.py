"""The recurrence of orthonormal Gegenbauer polynomials on S^{D-1} (docs/theory/finite_n.md, damped kernel)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

k, D = sp.symbols("k D", positive=True)
c = sp.Symbol("c", real=True)
square = sp.Symbol("b_k^2")


def _norm(degree, dim):
    """E p^2 of the polynomial with C_k^nu, nu = D/2 - 1, up to a factor that does not depend on the degree."""
    nu = sp.sympify(dim) / 2 - 1
    return sp.gamma(degree + 2 * nu) / (sp.gamma(degree + 1) * (degree + nu))


def _steps(candidate):
    nu = D / 2 - 1
    for degree in (2, 3):
        above, here, below = (sp.gegenbauer(degree + i, nu, c) for i in (1, 0, -1))
        left = (degree + 1) * above + (degree + 2 * nu - 1) * below
        yield Step(
            f"three-term recurrence of C_k, written out at k = {degree}",
            sp.expand(sp.expand_func(left)),
            sp.expand(sp.expand_func(2 * (degree + nu) * c * here)),
            sp.expand,
        )
    for degree in (1, 2, 3):
        square_of = sp.expand(sp.gegenbauer(degree, sp.Rational(3, 2), c) ** 2 * (1 - c**2))
        integral = sp.integrate(square_of, (c, -1, 1)) / sp.integrate(1 - c**2, (c, -1, 1))
        yield Step(f"norm of C_k at D = 5, k = {degree}", integral, _norm(degree, 5) / _norm(0, 5), sp.nsimplify)
    up = k / (2 * (k - 1 + nu))  # c C_{k-1} = up C_k + ...
    ratio = (k + D - 3) * (k - 1 + nu) / (k * (k + nu))
    yield Step("norm_k/norm_{k-1}", sp.gammasimp(_norm(k, D) / _norm(k - 1, D)), ratio)
    yield Step("b_k = up sqrt(norm_k/norm_{k-1}), squared", up**2 * ratio, candidate)


RESULT = Derivation(
    statement="c p_k = b_{k+1} p_{k+1} + b_k p_{k-1} for polynomials orthonormal under (1 - c^2)^{(D-3)/2}, k >= 2.",
    source="docs/theory/finite_n.md, damped kernel",
    status="derived",
    claim=sp.Eq(square, k * (k + D - 3) / ((2 * k + D - 2) * (2 * k + D - 4))),
    arguments=(k, D),
    steps=_steps,
)
