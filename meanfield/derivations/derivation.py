"""A derivation: a claim as an equation, the steps that lead to it, and the function the package evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p

Expression = sp.Expr | sp.MatrixBase


@dataclass(frozen=True)
class Step:
    """One equality of a derivation: `by(left - right)` must be identically zero."""

    reason: str
    left: Expression
    right: Expression
    by: Callable[[sp.Expr], sp.Expr] = sp.simplify

    @property
    def holds(self) -> bool:
        """Whether sympy reduces the difference of both sides to zero."""
        return all(not _differs(entry) and self.by(entry) == 0 for entry in self._residuals())

    @property
    def differs(self) -> bool:
        """Whether the sides are plainly different at one point, which is quicker to see than that they are equal."""
        return any(_differs(entry) for entry in self._residuals())

    def _residuals(self) -> list[sp.Expr]:
        residual = self.left - self.right
        entries = residual if isinstance(residual, sp.MatrixBase) else (sp.sympify(residual),)
        return [_plain(entry) for entry in entries]


@dataclass(frozen=True)
class Derivation:
    """A result of the theory and the only place where its formula is written down.

    statement   one sentence, with the assumptions
    source      paper with arXiv id and equation, or the section of docs/theory
    status      "proved" in the source; "derived" here by the steps; "conjectured"
    claim       the formula, an equation whose right-hand side depends on `arguments` alone
    steps       given a candidate right-hand side, the equalities that prove it; they hold for `claim.rhs` and fail for
                another candidate, so that a derivation cannot pass without reaching its claim
    """

    statement: str
    source: str
    status: Literal["proved", "derived", "conjectured"]
    claim: sp.Eq
    arguments: tuple[sp.Symbol, ...]
    steps: Callable[[sp.Expr], Iterable[Step]]

    def __post_init__(self) -> None:
        unknown = self.claim.rhs.free_symbols - set(self.arguments)
        if unknown:
            raise ValueError(f"claim {self.claim} depends on {sorted(map(str, unknown))}; list them as arguments")

    @cached_property
    def function(self) -> Callable[..., object]:
        """The right-hand side as a vectorised float64 function of `arguments`, in their order.

        It is evaluated as the claim writes it: where exp(x) - 1 or log(1 + x) would cancel, the claim uses expm1 and
        log1p of sympy.codegen.cfunctions, which the steps read as what they stand for.
        """
        return sp.lambdify(self.arguments, self.claim.rhs, modules=["scipy", "numpy"], cse=True)

    def verify(self) -> list[Step]:
        """The steps that do not hold: empty when the claim is proved."""
        return [step for step in self.steps(self.claim.rhs) if not step.holds]

    def refuses(self, candidate: sp.Expr) -> bool:
        """Whether some step fails for `candidate`, as it should for every formula but the claim."""
        steps = list(self.steps(candidate))
        return any(step.differs for step in steps) or not all(step.holds for step in steps)


def _differs(residual: sp.Expr) -> bool:
    """Whether the residual is plainly not zero at one point, which spares sympy the attempt to simplify it."""
    symbols = sorted(residual.free_symbols, key=str)
    point = {symbol: sp.Rational(2 + index, 11 + 3 * index) for index, symbol in enumerate(symbols)}
    value = sp.N(residual.subs(point), 30, chop=True)
    return bool(value.is_number and value.is_finite and abs(value) > sp.Rational(1, 10**9))


def _plain(expression: sp.Expr) -> sp.Expr:
    """The expression with expm1 and log1p written out, which sympy does not simplify by itself."""
    return expression.replace(expm1, lambda x: sp.exp(x) - 1).replace(log1p, lambda x: sp.log(1 + x))
