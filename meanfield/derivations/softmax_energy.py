"""The squared Frobenius norm of a softmax of Gaussian logits (docs/theory/spectra.md, 3.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

s2 = sp.Symbol("s2", positive=True)
l, t = sp.symbols("l t", real=True)
energy = sp.Symbol("energy")


def _steps(candidate):
    yield Step(
        "completing the square: ln E e^{t l} = t^2 s^2/2",
        t * l - l**2 / (2 * s2),
        t**2 * s2 / 2 - (l - t * s2) ** 2 / (2 * s2),
        by=sp.cancel,
    )
    moment = sp.exp(t**2 * s2 / 2)
    yield Step("E e^{2l}/(E e^l)^2", moment.subs(t, 2) / moment.subs(t, 1) ** 2, candidate)


RESULT = Derivation(
    statement="|A|_F^2 = N sum_j A_ij^2 = E e^{2l}/(E e^l)^2 for logits l ~ N(0, s^2) and many keys.",
    source="docs/theory/spectra.md, 3.3",
    status="derived",
    claim=sp.Eq(energy, sp.exp(s2)),
    arguments=(s2,),
    steps=_steps,
)
