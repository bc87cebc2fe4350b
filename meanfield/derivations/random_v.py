"""Growth of a mode by one block with a partially coherent value map (docs/theory/dynamics.md, 2.2 D)."""

from itertools import product

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.pre_ln_recursion import RESULT as COHERENT
from meanfield.derivations.pre_ln_recursion import eigenvalue, step

coherence = sp.Symbol("coherence", nonnegative=True)
factor = sp.Symbol("factor")


def _steps(candidate):
    size = 2
    entries = sp.symbols(f"g:{size * size}", real=True)
    noise = sp.Matrix(size, size, entries)
    mode = sp.Matrix(sp.symbols(f"x:{size}", real=True))
    value = coherence * sp.eye(size) + sp.sqrt(1 - coherence**2) * noise
    after = mode + step * eigenvalue * value * mode
    energy = sp.Poly(sp.expand((after.T * after)[0]), *entries)
    yield Step(
        "mean of |x + step V A x|^2 over G (entries of variance 1/d; written out for d = 2)",
        sum(energy.coeff_monomial(_monomial(entries, p)) * _moment(p, size) for p in product(range(3), repeat=size**2)),
        candidate * (mode.T * mode)[0],
    )
    yield Step("c = 1 is V = I", candidate.subs(coherence, 1), COHERENT.claim.rhs)


def _monomial(entries, powers):
    return sp.Mul(*(entry**power for entry, power in zip(entries, powers, strict=True)))


def _moment(powers, size):
    """Mean of a monomial of degree at most 2 in independent entries of mean 0 and variance 1/size."""
    if not any(powers):
        return sp.Integer(1)
    return sp.Rational(1, size) if sorted(powers)[-2:] == [0, 2] else sp.Integer(0)


RESULT = Derivation(
    statement="Mean growth of a mode's energy under x <- x + alpha V A, V = c I + sqrt(1 - c^2) G, G fresh and random.",
    source="docs/theory/dynamics.md, 2.2 D",
    status="derived",
    claim=sp.Eq(factor, 1 + 2 * coherence * step * eigenvalue + step**2 * eigenvalue**2),
    arguments=(coherence, step, eigenvalue),
    steps=_steps,
)
