"""The singular values of softmax attention between uniform directions, many keys (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

kappa, mu, nu, k = sp.symbols("kappa mu nu k", positive=True)
c, above = sp.symbols("c r", positive=True)
ratio = sp.Symbol("sigma_ratio")
HALF = sp.Rational(1, 2)


def _steps(candidate):
    square = 1 - c**2
    for degree in (1, 2, 3):
        polynomial = sp.gegenbauer(degree, nu, c) / sp.expand_func(sp.rf(2 * nu, degree) / sp.factorial(degree))
        size = (-2) ** degree * sp.expand_func(sp.rf(nu + HALF, degree))
        weight = sp.exp((degree + nu - HALF) * sp.log(square))
        yield Step(
            f"Rodrigues: P_k = (1 - c^2)^(1/2-nu) d^k/dc^k (1 - c^2)^(k+nu-1/2)/((-2)^k (nu + 1/2)_k), k = {degree}",
            sp.expand_func(polynomial),
            sp.cancel(sp.diff(weight, c, degree) / weight) * square**degree / size,
        )
    # k integrations by parts: E e^{kappa c} P_k = (kappa/2)^k int e^{kappa c} (1 - c^2)^(k+nu-1/2)/(nu + 1/2)_k over
    # the norm, hence sigma_k = I_{k+nu}/I_nu, with Poisson's integral I_mu ~ (kappa/2)^mu int .../Gamma(mu + 1/2)
    size = (kappa / 2) ** mu / sp.gamma(mu + HALF)
    yield Step("(nu + 1/2)_k", sp.gamma(k + nu + HALF) / sp.gamma(nu + HALF), sp.rf(nu + HALF, k), sp.gammasimp)
    base = sp.exp(kappa * c + (mu - 3 * HALF) * sp.log(square))
    coefficients = [sp.simplify(size.subs(mu, mu + i) / size) for i in (-1, 1)]
    integrand = coefficients[0] - coefficients[1] * square**2 - 2 * mu / kappa * square
    primitive = base * (-(square**2) * kappa / (4 * mu + 2) - c * square / 2) * 2 / kappa
    yield Step(
        "I_{mu-1} - I_{mu+1} - (2 mu/kappa) I_mu = 0: its integrand is a derivative that vanishes at both ends",
        sp.cancel(sp.diff(primitive, c) / base),
        integrand,
        lambda x: sp.cancel(sp.expand_func(x.subs(mu, nu + HALF))),
    )
    below = sp.solve(sp.Eq(1 / ratio - above, 2 * (mu + 1) / kappa), ratio)[0]
    yield Step("divided by I_{mu+1}, at mu + 1", below, candidate)
    polynomials = [sp.legendre(degree, c) for degree in range(3)]
    zero, one, two = (sp.integrate(sp.expand(sp.exp(kappa * c) * p), (c, -1, 1)) for p in polynomials)
    yield Step("the first degrees at D = 3 by integration", one / zero, candidate.subs({mu: HALF, above: two / one}))


RESULT = Derivation(
    statement=(
        "sigma_k = E[e^{kappa c} P_k(c)]/E e^{kappa c} = I_{k+nu}/I_nu, nu = D/2 - 1 (Funk-Hecke), with "
        "I_{mu+1}/I_mu = 1/(2(mu + 1)/kappa + r), r = I_{mu+2}/I_{mu+1}."
    ),
    source="docs/theory/finite_n.md, damped kernel; Rodrigues' formula: DLMF 18.5.5",
    status="derived",
    claim=sp.Eq(ratio, 1 / (2 * (mu + 1) / kappa + above)),
    arguments=(mu, kappa, above),
    steps=_steps,
)
