"""The power of depth with which a mode of the attention matrix decays (docs/theory/diffusion.md, sense ii)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, ratio, eigenvalue = sp.symbols("t rho lambda", positive=True)
amplitude = sp.Symbol("a")


def _steps(candidate):
    gain = 1 / (ratio + t)
    yield Step(
        "a' = (alpha/r)(lambda - 1) a, r = r_0 + alpha t", sp.diff(candidate, t), gain * (eigenvalue - 1) * candidate
    )
    yield Step("one at the start", candidate.subs(t, 0), sp.Integer(1))
    feature = sp.Function("x", positive=True)(t)
    common = sp.Function("r", positive=True)(t)
    yield Step(
        "linear response gives the same: x' = (alpha/r) lambda x relative to the common mode, r' = alpha",
        sp.diff(feature / common, t).subs(
            {sp.diff(feature, t): eigenvalue * feature / common, sp.diff(common, t): 1},
        )
        / (feature / common),
        sp.diff(candidate, t) / candidate * (ratio + t) / common,
    )


RESULT = Derivation(
    statement="Amplitude, relative to the common mode, of a mode with attention eigenvalue lambda at depth t.",
    source="docs/theory/diffusion.md, sense ii; docs/theory/notes.md 2.2 (linear response)",
    status="derived",
    claim=sp.Eq(amplitude, (1 + t / ratio) ** (eigenvalue - 1)),
    arguments=(t, ratio, eigenvalue),
    steps=_steps,
)
