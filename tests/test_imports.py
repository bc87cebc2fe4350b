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


@pytest.mark.parametrize("package", ["meanfield", "accel"])
def test_import_is_free_of_side_effects(package):
    """Importing draws no random number, starts no CUDA context, patches nothing and opens no figure backend."""
    code = f"""
import random, sys
import numpy as np
random.seed(0); np.random.seed(0)
before = random.getstate(), np.random.get_state()[1].tolist()
{"import torch; torch.manual_seed(0); state = torch.get_rng_state(); sdpa = torch.nn.functional.scaled_dot_product_attention"
  if package == "accel" else ""}
import {package}
assert before == (random.getstate(), np.random.get_state()[1].tolist())
assert "matplotlib.pyplot" not in sys.modules
if "{package}" == "meanfield":
    assert "torch" not in sys.modules
else:
    assert torch.equal(state, torch.get_rng_state()) and not torch.cuda.is_initialized()
    assert sdpa is torch.nn.functional.scaled_dot_product_attention
    assert torch.get_default_dtype() is torch.float32
"""
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:accel", "-c", code], check=True, cwd=ROOT)
