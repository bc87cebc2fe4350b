"""The density of the angle between uniform directions in D dimensions (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

a, D, n = sp.symbols("a D n", positive=True)
log_density = sp.Symbol("ln_rho")


def _steps(candidate):
    yield Step("the sphere at angle a has radius sin a and dimension D - 2", sp.diff(candidate, a), (D - 2) * sp.cot(a))
    primitive = -(sp.sin(a) ** (n + 1)) * sp.cos(a) / (n + 2)
    yield Step(
        "int sin^{n+2} = (n + 1)/(n + 2) int sin^n over 0 .. pi, by parts",
        sp.diff(primitive, a),
        sp.sin(a) ** (n + 2) - (n + 1) / (n + 2) * sp.sin(a) ** n,
    )
    density = sp.exp(candidate.replace(sp.loggamma, lambda x: sp.log(sp.gamma(x))))
    norm = sp.simplify(density.subs(a, sp.pi / 2))  # where sin a = 1
    for dim in (2, 3):
        mass = sp.integrate(sp.sin(a) ** (dim - 2), (a, 0, sp.pi)) * norm.subs(D, dim)
        yield Step(f"mass 1 at D = {dim}", mass, sp.Integer(1))
    ratio = norm.subs(D, D + 2) / norm
    ratio = sp.expand_func(ratio.subs(D, 2 * n + 1))
    yield Step("and from D to D + 2 = 2n + 3", ratio * 2 * n / (2 * n + 1), sp.Integer(1), sp.cancel)


RESULT = Derivation(
    statement="The angle between uniform directions has density sin^{D-2} Gamma(D/2)/(sqrt(pi) Gamma((D - 1)/2)).",
    source="docs/theory/finite_n.md, exact statistics of one row",
    status="derived",
    claim=sp.Eq(
        log_density,
        (D - 2) * sp.log(sp.sin(a)) + sp.loggamma(D / 2) - sp.loggamma((D - 1) / 2) - sp.log(sp.pi) / 2,
    ),
    arguments=(a, D),
    steps=_steps,
)
