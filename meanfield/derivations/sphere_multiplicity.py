"""The multiplicities of the singular values of a kernel on a sphere (docs/theory/finite_n.md, damped kernel)."""

from itertools import product

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

k, D = sp.symbols("k D", positive=True)
c = sp.Symbol("c", real=True)
log_multiplicity = sp.Symbol("ln_mult")


def _steps(candidate):
    multiplicity = sp.exp(candidate.replace(sp.loggamma, lambda x: sp.log(sp.gamma(x))))

    def monomials(degree):
        return sp.gamma(degree + D) / (sp.gamma(D) * sp.gamma(degree + 1))

    for degree in (2, 3):
        kernel = degree_kernel(degree, 3)
        yield Step(
            f"harmonic polynomials in D = 3, kernel of the Laplacian at k = {degree}",
            kernel,
            sp.simplify((monomials(k) - monomials(k - 2)).subs({k: degree, D: 3})),
        )
    yield Step(
        "polynomials of degree k less those of degree k - 2, onto which the Laplacian maps",
        sp.gammasimp((monomials(k) - monomials(k - 2)) / sp.simplify(multiplicity)),
        sp.Integer(1),
    )
    weight = 1 - c**2
    for degree in (1, 2, 3):
        polynomial = sp.gegenbauer(degree, sp.Rational(3, 2), c)
        mean = sp.integrate(sp.expand(polynomial**2 * weight), (c, -1, 1)) / sp.integrate(weight, (c, -1, 1))
        yield Step(
            f"addition theorem: 1/E P_k^2 at D = 5, k = {degree}",
            polynomial.subs(c, 1) ** 2 / mean,
            sp.simplify(multiplicity.subs({k: degree, D: 5})),
        )


def degree_kernel(degree, dim):
    """Dimension of the kernel of the Laplacian on homogeneous polynomials."""
    x = sp.symbols(f"x:{dim}")

    def exponents(total):
        return [e for e in product(range(total + 1), repeat=dim) if sum(e) == total]

    columns = []
    for powers in exponents(degree):
        term = sp.Mul(*(v**e for v, e in zip(x, powers, strict=True)))
        image = sp.Poly(sum(sp.diff(term, v, 2) for v in x), *x)
        columns.append([image.coeff_monomial(lower) for lower in exponents(degree - 2)])
    return sp.Integer(len(columns) - sp.Matrix(columns).rank())


RESULT = Derivation(
    statement="Degree k on S^{D-1} has multiplicity (2k + D - 2) (k + D - 3)!/(k! (D - 2)!).",
    source="docs/theory/finite_n.md, damped kernel",
    status="derived",
    claim=sp.Eq(
        log_multiplicity,
        sp.log(2 * k + D - 2) + sp.loggamma(k + D - 2) - sp.loggamma(k + 1) - sp.loggamma(D - 1),
    ),
    arguments=(k, D),
    steps=_steps,
)
