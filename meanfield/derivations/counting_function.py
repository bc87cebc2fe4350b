"""The potential whose imaginary part counts singular values (docs/theory/finite_n.md)."""

import sympy as sp
from sympy.codegen.cfunctions import log1p

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.finite_n_law import RESULT as FINITE_N_LAW
from meanfield.derivations.finite_n_law import theta as real_theta

log_det, theta, c1, c2 = sp.symbols("L theta c_1 c_2")
N, x, s, w, lam = sp.symbols("N x s w lambda", positive=True)
potential = sp.Symbol("Phi")


def _steps(candidate):
    z = sp.Symbol("z", positive=True)  # v
    yield Step(
        "dPhi/dln v = T for Phi = ln(1 + v s^2)", z * sp.diff(sp.log(1 + z * s**2), z), z * s**2 / (1 + z * s**2)
    )
    beyond, below = 1 + sp.Symbol("e", positive=True), 1 / (1 + sp.Symbol("e", positive=True))
    yield Step(
        "v = x e^{i pi}: a singular value with x s^2 > 1 counts", sp.im(sp.log(1 - beyond)) / sp.pi, sp.Integer(1)
    )
    yield Step("one with x s^2 < 1 does not", sp.im(sp.log(1 - below)) / sp.pi, sp.Integer(0))
    log_w = sp.Symbol("ln_w")
    share = sp.Function("theta")(log_w)
    determinant = sp.Function("L")(log_w)
    yield Step(
        "L = sum ln(1 + w lambda) has dL/dln w = P",
        w * sp.diff(sp.log(1 + w * lam), w),
        w * lam / (1 + w * lam),
    )
    log_v = log_w + c1 * share + c2 * share**2 + _plain(FINITE_N_LAW.claim.rhs.subs(real_theta, share))
    slope = sp.diff(_plain(candidate).subs({theta: share, log_det: determinant}), log_w)
    slope = slope.subs(sp.diff(determinant, log_w), N * share)
    yield Step("dPhi = T dln v with T = P = N theta", slope, N * share * sp.diff(log_v, log_w))
    yield Step("Phi = 0 at v = 0", candidate.subs({theta: 0, log_det: 0}), sp.Integer(0))


def _plain(expression):
    return expression.replace(log1p, lambda y: sp.log(1 + y))


RESULT = Derivation(
    statement=(
        "#{s^2 > 1/x} = Im Phi(x e^{i pi})/pi with dPhi = T dln v, L = sum ln(1 + w lambda), "
        "ln m = c_1 theta + c_2 theta^2."
    ),
    source="docs/theory/finite_n.md, the law",
    status="derived",
    claim=sp.Eq(
        potential,
        log_det + N * (c1 * theta**2 / 2 + 2 * c2 * theta**3 / 3 - 2 * (log1p(-theta) + theta)),
    ),
    arguments=(log_det, theta, N, c1, c2),
    steps=_steps,
)
