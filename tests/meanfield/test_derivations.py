"""Every derivation reaches its claim, constrains it, and is the formula that the package evaluates."""

import ast
from pathlib import Path

import pytest

from meanfield.derivations import derivations

PACKAGE = Path(__file__).resolve().parents[2] / "meanfield"
RESULTS = derivations()


@pytest.mark.parametrize("name", RESULTS)
def test_the_steps_prove_the_claim(name):
    failed = RESULTS[name].verify()
    assert not failed, [step.reason for step in failed]


def alternatives(name):
    """Other formulas, some of which agree with the claim at one size, at two and three tokens, or at 1."""
    result = RESULTS[name]
    rhs = result.claim.rhs
    yield 2 * rhs + 1
    for symbol in result.arguments:
        if symbol.name in ("N", "m", "n"):
            yield rhs + (symbol - 2) * (symbol - 3)
        for other in (rhs.subs(symbol, 2 * symbol), rhs.subs(symbol, 1 / symbol)):
            if other != rhs:
                yield other


@pytest.mark.parametrize("name", RESULTS)
def test_the_steps_refuse_other_claims(name):
    """A derivation whose steps do not mention the claim, or only at one size, would pass with a wrong formula."""
    accepted = [wrong for wrong in alternatives(name) if not RESULTS[name].refuses(wrong)]
    assert not accepted


def imported_modules() -> set[str]:
    """The modules that meanfield imports from, outside the derivations."""
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "derivations"]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_the_package_uses_every_derived_formula():
    """Every result is imported by some module outside the derivations: no second copy of the formula is needed."""
    unused = {f"meanfield.derivations.{name}" for name in RESULTS} - imported_modules()
    assert not unused
