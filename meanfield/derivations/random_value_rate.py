"""The rate of the variance under a fresh random V in every layer (docs/theory/diffusion.md, sense iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

g, energy, alpha = sp.symbols("g D alpha", positive=True)
rate = sp.Symbol("g'")


def _steps(candidate):
    mean = sp.Symbol("M", positive=True)
    square_norm = mean + energy
    mean_rate = alpha**2 * mean / square_norm
    yield Step(
        "g = D/(M + D) with M' = alpha^2 M/r^2 and D constant (uniform attention feeds the mean only)",
        sp.diff(energy / square_norm, mean) * mean_rate,
        candidate.subs(g, energy / square_norm),
    )


RESULT = Derivation(
    statement="Random V, uniform attention, N = infinity: the spread obeys g' = -c g^2 (1 - g), c = alpha^2/D.",
    source="docs/theory/diffusion.md, sense iv; docs/theory/notes.md 2.2 D",
    status="derived",
    claim=sp.Eq(rate, -(alpha**2) / energy * g**2 * (1 - g)),
    arguments=(g, energy, alpha),
    steps=_steps,
)
