"""The rate of the variance under a fresh random V in every layer (docs/theory/diffusion.md, sense iv)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step
from meanfield.derivations.random_v import RESULT as GROWTH
from meanfield.derivations.random_v import coherence, eigenvalue, step

g, energy, alpha = sp.symbols("g D alpha", positive=True)
rate = sp.Symbol("g'")


def _steps(candidate):
    mean = sp.Symbol("M", positive=True)
    square_norm = mean + energy
    growth = GROWTH.claim.rhs.subs({coherence: 0, step: alpha / sp.sqrt(square_norm)}) - 1
    yield Step("uniform attention, eigenvalue 0, leaves D alone", growth.subs(eigenvalue, 0), sp.Integer(0))
    mean_rate = mean * growth.subs(eigenvalue, 1)
    yield Step(
        "g = D/(M + D) with the growth of the mean, eigenvalue 1, and D constant",
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
