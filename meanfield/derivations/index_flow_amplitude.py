"""How a mode of the attention matrix decays over layers whose norm grows linearly (docs/theory/diffusion.md, ii)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

layers, ratio, deficit = sp.symbols("L rho q", positive=True)
amplitude = sp.Symbol("a")


def _steps(candidate):
    plain = candidate.replace(sp.loggamma, lambda z: sp.log(sp.gamma(z)))
    after = sp.gammasimp(sp.simplify(plain.subs(layers, layers + 1) / plain))
    gain = 1 / (ratio + layers)
    yield Step(
        "layer L multiplies the mode by 1 - q alpha/r_L, r_L = r_0 + alpha L, rho = r_0/alpha",
        after,
        1 - gain * deficit,
    )
    yield Step("one before the first layer", sp.simplify(plain.subs(layers, 0)), sp.Integer(1))


RESULT = Derivation(
    statement="Amplitude after L explicit layers of a mode with (A - I) x = -q x when r_l = r_0 + alpha l.",
    source="docs/theory/diffusion.md, sense ii",
    status="derived",
    claim=sp.Eq(
        amplitude,
        sp.exp(
            sp.loggamma(layers + ratio - deficit)
            - sp.loggamma(layers + ratio)
            + sp.loggamma(ratio)
            - sp.loggamma(ratio - deficit)
        ),
    ),
    arguments=(layers, ratio, deficit),
    steps=_steps,
)
