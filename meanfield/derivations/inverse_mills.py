"""The shift of the mean logit when only the largest Gaussian logits are kept (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

s = sp.Symbol("s", nonnegative=True)
z = sp.Symbol("z", real=True)
shift = sp.Symbol("h")


def _steps(candidate):
    density = sp.exp(-((z - s) ** 2) / 2) / sp.sqrt(2 * sp.pi)
    mass = sp.erfc((z - s) / sp.sqrt(2)) / 2
    first_moment = candidate * mass
    yield Step("d/dz of int_z^oo (x - s) phi(x - s) dx", sp.diff(first_moment, z), -(z - s) * density)
    yield Step("no moment above an infinite threshold", sp.limit(first_moment, z, sp.oo), sp.Integer(0))


RESULT = Derivation(
    statement="Under the tilted density phi(x - s), the mean of x - s over x > z is phi(s - z)/Phi(s - z).",
    source="docs/theory/reductions.md, sparsity",
    status="derived",
    claim=sp.Eq(shift, sp.sqrt(2 / sp.pi) * sp.exp(-((z - s) ** 2) / 2) / sp.erfc((z - s) / sp.sqrt(2))),
    arguments=(s, z),
    steps=_steps,
)
