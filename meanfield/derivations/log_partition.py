"""The mean logarithm of a softmax denominator, by Frullani's integral (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, N, z = sp.symbols("t N z", positive=True)
log_phi = sp.Symbol("ln_phi", real=True)
integrand = sp.Symbol("f")


def _steps(candidate):
    one = candidate.subs(log_phi, -t * z / N)  # N keys of weight z/N each: Z = z
    yield Step("f = 0 at Z = 1, where ln Z = 0", one.subs(z, 1), sp.Integer(0))
    slope = sp.diff(one / t, z)
    yield Step("d/dZ of f/t", slope, sp.exp(-t * z))
    yield Step("integrates to d ln Z/dZ", sp.integrate(sp.exp(-t * z), (t, 0, sp.oo)), 1 / z)
    q, u, w = sp.symbols("q u w", positive=True)  # two kinds of weights, with chance q and 1 - q; N = 2
    phi = q * sp.exp(-t * u) + (1 - q) * sp.exp(-t * w)
    rows = {2 * u: q**2, u + w: 2 * q * (1 - q), 2 * w: (1 - q) ** 2}
    mean = sum(chance * one.subs(N, 2).subs(z, total) for total, chance in rows.items())
    yield Step(
        "the mean over independent keys is f at phi = E e^{-t e^l}", mean, candidate.subs({N: 2, log_phi: sp.log(phi)})
    )


RESULT = Derivation(
    statement="E ln Z = int (e^{-t} - phi(t)^N) dt/t, phi(t) = E exp(-t e^l), for N independent logits.",
    source="docs/theory/finite_n.md, exact statistics of one row",
    status="derived",
    claim=sp.Eq(integrand, sp.exp(-t) - sp.exp(N * log_phi)),
    arguments=(t, N, log_phi),
    steps=_steps,
)
