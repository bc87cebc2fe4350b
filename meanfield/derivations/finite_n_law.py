"""The finite-N law of free features: S-transforms multiply (docs/theory/finite_n.md)."""

import sympy as sp
from sympy.codegen.cfunctions import log1p

from meanfield.derivations.derivation import Derivation, Step

theta, w, u, c = sp.symbols("theta w u c", positive=True)
h, psi = sp.symbols("h psi")
log_ratio = sp.Symbol("ln_v_over_w")


def _steps(candidate):
    y = sp.Matrix(sp.symbols("y1 y2"))
    inverse = sp.Matrix(2, 2, sp.symbols("g1 g2 g2 g3"))
    q = (y.T * inverse * y)[0]
    yield Step(
        "Sherman-Morrison: y^T (G^{-1} + y y^T)^{-1} y = q/(1 + q), q = y^T G y",
        (y.T * (inverse.inv() + y * y.T).inv() * y)[0],
        q / (1 + q),
    )
    # W of N samples in K = c N dimensions, h = Tr (1 + u W)^{-1}/K: 1 - h = (N/K) q/(1 + q), q = u c h in the mean
    chi = -sp.solve(sp.Eq(1 - h, u * h / (1 + u * c * h)), u)[0].subs(h, 1 + psi)
    moments = [1, 1 + c, 1 + 3 * c + c**2]
    series = sum(m * u ** (i + 1) for i, m in enumerate(moments))
    inverted = sp.series(chi.subs(psi, series), u, 0, 4).removeO()
    yield Step("chi(psi(u)) = u with the moments of Marchenko-Pastur", inverted, u)
    s_transform = sp.simplify((1 + psi) / psi * chi)
    yield Step("the S-transform of a Wishart factor", s_transform, 1 / (1 + c * psi))
    # S multiplies for free factors; chi = psi S/(1 + psi), hence every factor multiplies chi of Lambda^2, which is -w
    product = -w * s_transform**2
    v = -product.subs(psi, -theta / c)  # psi = -T/K = -theta/c
    yield Step("one factor for the queries, one for the keys", v / w, sp.exp(candidate))
    flat = sp.solve(sp.Eq(1 - h, u * h / (1 + u * h)), u)[0].subs(h, 1 - theta)
    yield Step("many equal modes: the quarter circle, Marchenko-Pastur at c = 1", flat / theta, sp.exp(candidate))


RESULT = Derivation(
    statement=(
        "The squared singular values of (1/N) X Lambda Y^T, X and Y independent and free, have T_N(v) = P(w) = N theta "
        "with v = w/(1 - theta)^2."
    ),
    source="docs/theory/finite_n.md, the law; S-transforms multiply: Voiculescu 1987",
    status="derived",
    claim=sp.Eq(log_ratio, -2 * log1p(-theta)),
    arguments=(theta,),
    steps=_steps,
)
