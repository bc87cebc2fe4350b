"""Growth of a small modulation of a uniform cloud under the mean shift (docs/theory/diffusion.md, sense iii)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

k, beta = sp.symbols("k beta", positive=True)
rate = sp.Symbol("omega")


def _steps(candidate):
    x, z = sp.symbols("x z", real=True)
    size = sp.Symbol("epsilon")
    kernel = sp.sqrt(beta / (2 * sp.pi)) * sp.exp(-beta * z**2 / 2)
    damping = sp.integrate(kernel * sp.cos(k * z), (z, -sp.oo, sp.oo))
    density = 1 + size * sp.cos(k * x)
    smoothed = 1 + size * damping * sp.cos(k * x)
    velocity = sp.diff(sp.log(smoothed), x) / beta
    change = -sp.diff(sp.diff(density * velocity, x), size).subs(size, 0)
    yield Step(
        "first order in the modulation of u_t = -(u v)_x, v = (ln K*u)_x/beta", change, candidate * sp.cos(k * x)
    )
    yield Step("the fastest wave is k = sqrt(2 beta)", sp.diff(candidate, k).subs(k, sp.sqrt(2 * beta)), sp.Integer(0))
    yield Step("its rate is 2/e at every beta", candidate.subs(k, sp.sqrt(2 * beta)), 2 * sp.exp(-1))


RESULT = Derivation(
    statement="A modulation cos(kx) of a uniform cloud grows at rate omega: backward heat cut off at the kernel width.",
    source="docs/theory/diffusion.md, sense iii",
    status="derived",
    claim=sp.Eq(rate, k**2 / beta * sp.exp(-(k**2) / (2 * beta))),
    arguments=(k, beta),
    steps=_steps,
)
