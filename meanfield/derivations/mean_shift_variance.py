"""The variance of a Gaussian blob under the mean shift, at every temperature (docs/theory/diffusion.md, sense iii)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

t, beta, s0 = sp.symbols("t beta s_0", positive=True)
variance = sp.Symbol("s")


class wrightomega(sp.Function):
    """W(e^z): the y with y + ln y = z, so that e^z is never formed."""

    @classmethod
    def eval(cls, z):
        for term in sp.Add.make_args(z):
            if isinstance(term, sp.log) and sp.simplify(z - term - term.args[0]) == 0:
                return term.args[0]
        return None

    def fdiff(self, argindex=1):
        return self / (1 + self)


def _steps(candidate):
    x, y = sp.symbols("x y", real=True)
    s = sp.Symbol("s", positive=True)
    weight = sp.exp(-beta * (x - y) ** 2 / 2 - y**2 / (2 * s))
    line = (y, -sp.oo, sp.oo)
    yield Step(
        "the conditional mean under kernel and blob is linear: the exponent is stationary in y there",
        sp.solve(sp.diff(sp.log(weight), y), y)[0],
        beta * s * x / (1 + beta * s),
    )
    yield Step(
        "for a Gaussian weight the stationary point is the mean (written out for s = beta = 1)",
        sp.integrate((y - x / 2) * sp.expand(weight.subs({s: 1, beta: 1})), line),
        sp.Integer(0),
    )
    velocity = beta * s * x / (1 + beta * s) - x
    yield Step(
        "so s' = 2 s (velocity/x) = -2 s/(1 + beta s), which the candidate solves",
        sp.diff(candidate, t),
        (2 * s * velocity / x).subs(s, candidate),
    )
    yield Step("s(0) = s_0, as omega(ln z + z) = z", candidate.subs(t, 0), s0)


RESULT = Derivation(
    statement="Gaussian blob of variance s_0 under x' = E[y|x] - x with kernel exp(-beta |x - y|^2/2).",
    source="docs/theory/diffusion.md, sense iii",
    status="derived",
    claim=sp.Eq(variance, wrightomega(sp.log(beta * s0) + beta * s0 - 2 * t) / beta),
    arguments=(t, beta, s0),
    steps=_steps,
)
