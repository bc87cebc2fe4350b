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


@pytest.mark.parametrize("name", RESULTS)
def test_the_steps_refuse_another_claim(name):
    """A derivation whose steps do not mention the claim would pass with any formula."""
    assert RESULTS[name].verify(2 * RESULTS[name].claim.rhs + 1)


@pytest.mark.parametrize("name", RESULTS)
def test_the_package_uses_the_derived_formula(name):
    """Some module outside the derivations imports the result, so that no second copy of the formula is needed."""
    module = f"meanfield.derivations.{name}"
    users = [
        path
        for path in PACKAGE.glob("*.py")
        if any(
            isinstance(node, ast.ImportFrom) and node.module == module for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert users, f"nothing in meanfield imports {module}"
