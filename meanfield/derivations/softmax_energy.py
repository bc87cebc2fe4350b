"""The squared Frobenius norm of a softmax of Gaussian logits (docs/theory/spectra.md, 3.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

s2 = sp.Symbol("s2", positive=True)
energy = sp.Symbol("energy")


def _steps(candidate):
    s, x = sp.Symbol("s", positive=True), sp.Symbol("x", real=True)
    density = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)

    def expectation(function):
        return sp.integrate(function * density, (x, -sp.oo, sp.oo))

    mean = expectation(sp.exp(s * x))
    yield Step("E e^l, l = s x", mean, sp.exp(s**2 / 2))
    ratio = expectation(sp.exp(2 * s * x)) / mean**2
    yield Step("E e^{2l}/(E e^l)^2", ratio, candidate.subs(s2, s**2))


RESULT = Derivation(
    statement="|A|_F^2 = N sum_j A_ij^2 = E e^{2l}/(E e^l)^2 for logits l ~ N(0, s^2) and many keys.",
    source="docs/theory/spectra.md, 3.3",
    status="derived",
    claim=sp.Eq(energy, sp.exp(s2)),
    arguments=(s2,),
    steps=_steps,
)
