"""The Frobenius norm of dot-product attention between Gaussian tokens, one dimension (docs/theory/spectra.md, 3.4)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

h = sp.Symbol("h", positive=True)
x, y = sp.symbols("x y", real=True)
frobenius = sp.Symbol("F2")


def _steps(candidate):
    kernel = h * x * y - h**2 * x**2 / 2  # ln A(x, y) in units of sqrt(lambda)
    yield Step(
        "rows are normalised: e^{kernel} N(y; 0, 1) is the density N(y; h x, 1)",
        kernel - y**2 / 2,
        -((y - h * x) ** 2) / 2,
        by=sp.expand,
    )
    yield Step("so y goes to h x: the eigenvalues are h^k", sp.solve(sp.diff(kernel - y**2 / 2, y), y)[0], h * x)
    form = sp.hessian(2 * kernel - x**2 / 2 - y**2 / 2, (x, y))
    yield Step("the Gaussian integral of A^2 is det^{-1/2}", 1 / form.det(), candidate**2, by=sp.cancel)


RESULT = Derivation(
    statement=(
        "Self-attention with logits beta x y, x, y ~ N(0, lambda), has |A|_F^2 = (1 - 2 h^2)^{-1/2}, h = beta lambda."
    ),
    source="docs/theory/spectra.md, 3.4",
    status="derived",
    claim=sp.Eq(frobenius, 1 / sp.sqrt(1 - 2 * h**2)),
    arguments=(h,),
    steps=_steps,
)
