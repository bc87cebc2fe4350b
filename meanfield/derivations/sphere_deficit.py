"""The entropy deficit of softmax rows over uniform directions, many keys (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

kappa, r, nu, j = sp.symbols("kappa r nu j", positive=True)
L = sp.Symbol("L", real=True)
deficit = sp.Symbol("deficit")


def _steps(candidate):
    def bessel_term(order):
        return (kappa / 2) ** (2 * j + order) / (sp.gamma(j + 1) * sp.gamma(j + order + 1))

    prefactor = sp.gamma(nu + 1) * (2 / kappa) ** nu
    term = (kappa**2 / 4) ** j * sp.gamma(nu + 1) / (sp.gamma(j + 1) * sp.gamma(nu + 1 + j))
    yield Step(
        "E e^{kappa c} = Gamma(nu + 1) (2/kappa)^nu I_nu, term by term",
        prefactor * bessel_term(nu) / term,
        sp.Integer(1),
    )
    slope = sp.diff(term, kappa).subs(j, j + 1)
    yield Step(
        "its derivative is the same with I_{nu+1}: L' = I_{nu+1}/I_nu = r",
        sp.gammasimp(sp.simplify(prefactor * bessel_term(nu + 1) / slope)),
        sp.Integer(1),
    )
    t = sp.Symbol("t", positive=True)
    mean = sp.Function("L")
    tilted = sp.diff(mean(t * kappa), t).subs(t, 1).doit()
    expected = tilted.replace(lambda e: isinstance(e, sp.Subs | sp.Derivative), lambda e: r)
    yield Step(
        "E[e^l l]/E e^l - ln E e^l is the t-derivative of ln E e^{t l} less itself, t = 1", expected - L, candidate
    )


RESULT = Derivation(
    statement="ln N - H = kappa I_{nu+1}/I_nu - ln E e^{kappa cos}, nu = D/2 - 1, for many keys.",
    source="docs/theory/finite_n.md, exact statistics of one row",
    status="derived",
    claim=sp.Eq(deficit, kappa * r - L),
    arguments=(kappa, r, L),
    steps=_steps,
)
