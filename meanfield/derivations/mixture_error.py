"""The expected error of a mixture of a subsampled output with the mean value (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

weight, B2, mse = sp.symbols("lambda B2 mse", positive=True)
error = sp.Symbol("error")


def _steps(candidate):
    out, mean, noise = (sp.Matrix(sp.symbols(f"{name}1:3", real=True)) for name in ("o", "v", "e"))

    def squared(sampled):
        difference = weight * (out + sampled) + (1 - weight) * mean - out
        return difference.dot(difference)

    measured = {B2: (mean - out).dot(mean - out), mse: noise.dot(noise)}
    yield Step(
        "sampling errors +e and -e, equally likely, in two channels: the cross term vanishes in the mean",
        (squared(noise) + squared(-noise)) / 2,
        candidate.subs(measured, simultaneous=True),
    )


RESULT = Derivation(
    statement="lambda o_S + (1 - lambda) vbar errs by (1 - lambda)^2 B^2 + lambda^2 MSE when o_S is unbiased.",
    source="docs/theory/reductions.md, shrinkage",
    status="derived",
    claim=sp.Eq(error, (1 - weight) ** 2 * B2 + weight**2 * mse),
    arguments=(weight, B2, mse),
    steps=_steps,
)
