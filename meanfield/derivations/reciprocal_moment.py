"""Moments of softmax weights without a random denominator (docs/theory/finite_n.md, statistics of one row)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

p, t, Z, rest = sp.symbols("p t Z R", positive=True)
l, a = sp.symbols("l a", real=True)
log_weight = sp.Symbol("ln_g")


def _steps(candidate):
    euler = sp.integrate(t ** (p - 1) * sp.exp(-t * Z), (t, 0, sp.oo))
    yield Step("1/Z^p = int t^{p-1} e^{-tZ} dt/Gamma(p)", euler / sp.gamma(p), Z**-p)
    tau = sp.Symbol("tau", real=True)
    yield Step("dt = t dtau with tau = ln t", sp.diff(sp.exp(tau), tau), sp.exp(tau))
    integrand = sp.exp(p * l) * sp.exp(tau * p) * sp.exp(-sp.exp(tau) * (sp.exp(l) + rest)) / sp.gamma(p)
    weight = sp.exp(_gamma(candidate).subs(a, tau + l))
    yield Step(
        "with Z = e^l + R, of the weight e^{pl}/Z^p the own logit gives g(ln t + l), the others e^{-tR}",
        sp.expand(sp.expand_log(sp.log(integrand / weight), force=True)),
        -sp.exp(tau) * rest,
    )
    mass = sp.integrate((t ** (p - 1) * sp.exp(-t)), (t, 0, sp.oo)) / sp.gamma(p)
    shape = sp.exp(_gamma(candidate)).subs(a, sp.log(t)) / t
    yield Step("g has mass 1 over ln t: a row of one key", shape * sp.gamma(p), t ** (p - 1) * sp.exp(-t) * mass)


def _gamma(expression):
    return expression.replace(sp.loggamma, lambda x: sp.log(sp.gamma(x)))


RESULT = Derivation(
    statement="e^{pl}/(e^l + R)^p = int g_p(ln t + l) e^{-tR} dln t, ln g_p(a) = p a - e^a - ln Gamma(p).",
    source="docs/theory/finite_n.md, exact statistics of one row",
    status="derived",
    claim=sp.Eq(log_weight, p * a - sp.exp(a) - sp.loggamma(p)),
    arguments=(p, a),
    steps=_steps,
)
