"""The dependency direction meanfield <- accel <- experiments, and imports without side effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"meanfield": {"torch", "accel", "experiments"}, "accel": {"experiments"}}


def imported(path: Path) -> set[str]:
    """Top-level names of every import statement of a file, also of those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_direction(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path


COMMON = """
import random, sys
import numpy as np
random.seed(0); np.random.seed(0)
before = random.getstate(), np.random.get_state()[1].tolist()
{prepare}
import {package}
assert before == (random.getstate(), np.random.get_state()[1].tolist())
assert "matplotlib.pyplot" not in sys.modules
{check}
"""
PREPARE_TORCH = """
import torch, rich.console  # rich draws its style ids at import
random.seed(0)
torch.manual_seed(0)
state, sdpa = torch.get_rng_state(), torch.nn.functional.scaled_dot_product_attention
"""
CHECK_TORCH = """
assert torch.equal(state, torch.get_rng_state()) and not torch.cuda.is_initialized()
assert sdpa is torch.nn.functional.scaled_dot_product_attention
assert torch.get_default_dtype() is torch.float32
"""
CASES = {"meanfield": ("", 'assert "torch" not in sys.modules'), "accel": (PREPARE_TORCH, CHECK_TORCH)}


@pytest.mark.parametrize("package", CASES)
def test_import_is_free_of_side_effects(package):
    """Importing draws no random number, starts no CUDA context, patches nothing and opens no figure backend."""
    prepare, check = CASES[package]
    code = COMMON.format(package=package, prepare=prepare, check=check)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
