"""The sum of the singular values of a quarter-circle bulk (docs/theory/spectra.md, 3.3)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

N, bulk = sp.symbols("N b", positive=True)
x = sp.Symbol("x", positive=True)
nuclear = sp.Symbol("nuclear")


def _steps(candidate):
    root = sp.sqrt(4 - x**2)
    primitives = {
        0: x * root / 2 + 2 * sp.asin(x / 2),
        1: -(root**3) / 3,
        2: x * (x**2 - 2) * root / 4 + 2 * sp.asin(x / 2),
    }
    moment = {}
    for power, primitive in primitives.items():
        yield Step(f"a primitive of x^{power} sqrt(4 - x^2)", sp.diff(primitive, x), x**power * root)
        moment[power] = (primitive.subs(x, 2) - primitive.subs(x, 0)) / sp.pi
    yield Step("sqrt(4 - x^2)/pi on [0, 2] has mass 1", moment[0], sp.Integer(1))
    yield Step("and second moment 1, so that N values x sqrt(b/N) have energy b", moment[2], sp.Integer(1))
    yield Step("N times the first moment", N * sp.sqrt(bulk / N) * moment[1], candidate)


RESULT = Derivation(
    statement=(
        "N singular values with quarter-circle density on [0, 2 sqrt(b/N)], b = sum s^2, add up to 8/(3 pi) sqrt(N b)."
    ),
    source="docs/theory/spectra.md, 3.3",
    status="derived",
    claim=sp.Eq(nuclear, 8 * sp.sqrt(N * bulk) / (3 * sp.pi)),
    arguments=(N, bulk),
    steps=_steps,
)
