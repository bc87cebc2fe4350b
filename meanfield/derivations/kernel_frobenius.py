"""The Frobenius norm of Gaussian-kernel attention between Gaussian tokens, one dimension.

docs/theory/spectra.md, 3.4.
"""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

h = sp.Symbol("h", positive=True)
x, y = sp.symbols("x y", real=True)
frobenius = sp.Symbol("F2")


def _steps(candidate):
    a = h / (1 + h)
    row = -((y - a * x) ** 2) / (2 * (1 - a))  # ln of the row's density, up to its normalisation
    yield Step(
        "the row is the kernel times N(y; 0, 1), up to a function of x",
        row - (-h * (x - y) ** 2 / 2 - y**2 / 2),
        (row - (-h * (x - y) ** 2 / 2 - y**2 / 2)).subs(y, 0),
        by=sp.cancel,
    )
    form = -sp.hessian(2 * row + y**2 / 2 - x**2 / 2, (x, y))  # A^2 N(x) N(y), A = row/N(y)
    yield Step("the Gaussian integral", 1 / ((1 - a) ** 2 * form.det()), candidate**2, by=sp.cancel)


RESULT = Derivation(
    statement=(
        "Attention e^{-beta (x - y)^2/2}, x, y ~ N(0, lambda): |A|_F^2 = (1 + h)^{3/2} (1 + 3h)^{-1/2}, "
        "h = beta lambda."
    ),
    source="docs/theory/spectra.md, 3.4",
    status="derived",
    claim=sp.Eq(frobenius, (1 + h) ** sp.Rational(3, 2) / sp.sqrt(1 + 3 * h)),
    arguments=(h,),
    steps=_steps,
)
