"""The entropy deficit of a softmax of Gaussian logits (docs/theory/spectra.md, 3.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

s2 = sp.Symbol("s2", positive=True)
l, t = sp.symbols("l t", real=True)
deficit = sp.Symbol("deficit")


def _steps(candidate):
    yield Step(
        "completing the square: ln E e^{t l} = t^2 s^2/2",
        t * l - l**2 / (2 * s2),
        t**2 * s2 / 2 - (l - t * s2) ** 2 / (2 * s2),
        by=sp.cancel,
    )
    log_moment = t**2 * s2 / 2
    yield Step(
        "E[e^l l]/E e^l is the derivative of ln E e^{t l} at t = 1",
        (sp.diff(log_moment, t) - log_moment).subs(t, 1),
        candidate,
    )


RESULT = Derivation(
    statement="ln N - H = E[e^l l]/E e^l - ln E e^l for logits l ~ N(0, s^2) and many keys.",
    source="docs/theory/spectra.md, 3.3",
    status="derived",
    claim=sp.Eq(deficit, s2 / 2),
    arguments=(s2,),
    steps=_steps,
)
