"""The leading squared singular value between Gaussian queries with a mean and keys.

docs/theory/spectra.md, 3.5, sinks.

Queries z = m + u, u ~ N(0, c), c = r/(1 + r^2); K K^T has the kernel exp(z z').
"""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

r = sp.Symbol("r", positive=True)
m, u, other, t = sp.symbols("m u u' t", real=True)
leading = sp.Symbol("lambda")


def _steps(candidate):
    c = r / (1 + r**2)
    a = m * (1 + r) / (1 - r)
    growth = c / (1 - r * c)
    yield Step("r solves r = c/(1 - r c)", growth, r, by=sp.cancel)
    total = (m + u) * (m + other) + a * other + r * other**2 / 2 + t * other
    source = u + m + a + t
    square = m**2 + m * u + r * source**2 / 2
    yield Step(
        "completing the square in u' after the weight N(0, c)",
        total - other**2 / (2 * c),
        square - (other - r * source) ** 2 / (2 * r),
        by=sp.cancel,
    )
    log_leading = m**2 + r * (m + a) ** 2 / 2
    yield Step(
        "e^{a u + r u^2/2} is an eigenfunction", square.subs(t, 0), log_leading + a * u + r * u**2 / 2, by=sp.cancel
    )
    yield Step(
        "the next eigenfunction has the ratio r, whatever m",
        sp.diff(square, t).subs(t, 0).diff(u),
        r,
        by=sp.cancel,
    )
    yield Step("its eigenvalue: (1 - r c)^{-1/2} e^{...}", sp.exp(log_leading) / sp.sqrt(1 - r * c), candidate)
    yield Step(
        "in terms of c: (1 + r^2)/(1 - r)^2 = 1/(1 - 2c)", (1 + r**2) / (1 - r) ** 2, 1 / (1 - 2 * c), by=sp.cancel
    )


RESULT = Derivation(
    statement=(
        "A query mean m multiplies every squared singular value by e^{m^2/(1 - 2c)} and leaves their "
        "ratios r unchanged."
    ),
    source="docs/theory/spectra.md, 3.5",
    status="derived",
    claim=sp.Eq(leading, sp.sqrt(1 + r**2) * sp.exp(m**2 * (1 + r**2) / (1 - r) ** 2)),
    arguments=(r, m),
    steps=_steps,
)
