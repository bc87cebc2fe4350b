"""How far the leading singular value exceeds 1 when columns do not sum to one (docs/theory/finite_n.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

energy, N, d = sp.symbols("E N d", positive=True)
square = sp.Symbol("sigma2", positive=True)
excess = sp.Symbol("excess")


def _steps(candidate):
    sigma = sp.sqrt(square)
    block = sp.Matrix([[1, d], [0, sigma]])  # A 1 = 1 exactly; 1^T A = 1^T + d along a mode of singular value sigma
    yield Step("rows sum to one", block[:, 0], sp.Matrix([1, 0]))
    x = sp.Symbol("x")
    b = sp.Symbol("b")
    polynomial = (block * block.T - x * sp.eye(2)).det()
    expanded = sp.series(sp.expand(polynomial.subs(x, 1 + b * d**2)), d, 0, 3).removeO().coeff(d, 2)
    yield Step("s_1^2 = 1 + b d^2 with b = 1/(1 - sigma^2)", sp.solve(expanded, b)[0], 1 / (1 - square))
    features = sp.symbols("x1:4", real=True)
    mean_square = sp.expand(sum(features) ** 2 / 9)
    mean_square = mean_square.replace(lambda e: e.is_Pow and e.exp == 2 and e.base in features, lambda e: sp.Integer(1))
    independent = mean_square.subs(dict.fromkeys(features, 0))
    yield Step("the mean of N independent features has variance 1/N, N = 3", independent, sp.Rational(1, 3))
    multiplicity = sp.Symbol("mult", positive=True)
    variance = square / N  # E d^2 = sigma^2 E (mean of x_i)^2
    total = multiplicity * variance / (1 - square)
    yield Step("the sum over a degree, E = multiplicity sigma^2", total, candidate.subs(energy, multiplicity * square))


RESULT = Derivation(
    statement=(
        "s_1^2 = 1 + (1/N) sum E/(1 - sigma^2) to second order in column sums less one, E = multiplicity sigma^2 of "
        "each degree, rows summing to one."
    ),
    source="docs/theory/finite_n.md, damped kernel",
    status="derived",
    claim=sp.Eq(excess, energy / (N * (1 - square))),
    arguments=(energy, square, N),
    steps=_steps,
)
