"""The attention mass of the largest Gaussian logits (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

s = sp.Symbol("s", nonnegative=True)
z = sp.Symbol("z", real=True)
rho = sp.Symbol("rho")


def _steps(candidate):
    x = sp.Symbol("x", real=True)
    density = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    normaliser = sp.integrate(sp.exp(s * x) * density, (x, -sp.oo, sp.oo))
    yield Step("mean exponential", normaliser, sp.exp(s**2 / 2))
    tilted = sp.exp(s * x) * density / sp.exp(s**2 / 2)
    yield Step("a key at the threshold carries the tilted density", -sp.diff(candidate, z), tilted.subs(x, z))
    yield Step("nothing is kept above an infinite threshold", sp.limit(candidate, z, sp.oo), sp.Integer(0))
    yield Step("everything is kept above -infinity", sp.limit(candidate, z, -sp.oo), sp.Integer(1))


RESULT = Derivation(
    statement="Of infinitely many Gaussian logits s x, those with x > z carry the attention mass Phi(s - z).",
    source="docs/theory/reductions.md, sparsity",
    status="derived",
    claim=sp.Eq(rho, sp.erfc((z - s) / sp.sqrt(2)) / 2),
    arguments=(s, z),
    steps=_steps,
)
