"""The narrow-kernel limit of attention without normaliser, with softmax, with Sinkhorn (docs/theory/diffusion.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

beta, density, left, right = sp.symbols("beta rho l k", positive=True)
gradient = sp.Symbol("G", real=True)
velocity = sp.Symbol("v")


def _steps(candidate):
    x, z = sp.symbols("x z", real=True)
    rho = sp.Function("rho", positive=True)
    weighted = rho(x) ** (1 - right)
    kernel = sp.sqrt(beta / (2 * sp.pi)) * sp.exp(-beta * z**2 / 2)
    taylor = [sp.integrate(kernel * z ** (j + 1), (z, -sp.oo, sp.oo)) / sp.factorial(j) for j in range(4)]
    moment = sum(taylor[j] * sp.diff(weighted, x, j) for j in range(4))
    leading = beta * taylor[1] * sp.diff(weighted, x)
    yield Step(
        "the kernel's first moment of rho^{1-k}(x + z) is its gradient over beta, up to beta^{-2}",
        sp.expand(beta * moment - leading),
        sp.expand(beta * taylor[3] * sp.diff(weighted, x, 3)),
    )
    local = {density: rho(x), gradient: sp.diff(rho(x), x)}
    yield Step("divided by rho^l", rho(x) ** (-left) * leading / beta, candidate.subs(local))
    for name, powers, expected in (
        ("none: grad rho", (0, 0), gradient / beta),
        ("softmax: rows divided by K*rho -> rho", (1, 0), gradient / density / beta),
        ("Sinkhorn: rows and columns by sqrt(rho)", (sp.Rational(1, 2),) * 2, gradient / (2 * density * beta)),
    ):
        yield Step(name, candidate.subs({left: powers[0], right: powers[1]}), expected)


RESULT = Derivation(
    statement="Velocity of attention with kernel variance 1/beta -> 0 and weights divided by rho(x)^l rho(y)^k.",
    source="docs/theory/diffusion.md, sense iii; Sander et al. 2110.11773",
    status="derived",
    claim=sp.Eq(velocity, (1 - right) * density ** (-left - right) * gradient / beta),
    arguments=(density, gradient, beta, left, right),
    steps=_steps,
)
