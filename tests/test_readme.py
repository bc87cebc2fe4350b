"""What the README shows is what happens."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_example(index: int) -> dict:
    """The names left by a Python example of the README."""
    scope: dict = {}
    exec(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[index], scope)
    return scope


def test_the_python_example_runs():
    scope = run_example(0)
    frames = scope["images"].shape[1]
    assert scope["predictions"]["depth"].shape == (1, frames, 64, 64, 1)
    assert scope["predictions"]["depth"].isfinite().all()
    assert scope["schedule"].predicted_total <= 0.02


def test_the_example_of_the_theory_runs():
    scope = run_example(1)
    assert "no power law is reached" in scope["ranks"].attrs["power_law"]
    rank, high = (scope["probed"][f"attention_effective_rank{end}"].values for end in ("", "_high"))
    assert (rank < high).all() and scope["result"].verify() == []


def test_the_two_commands_are_there_and_ci_runs_the_second():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in readme and re.search(rf"^{target}:", makefile, re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_no_text_was_left_to_fill_in():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed or [p.name for p in ROOT.glob("*.md")]:
        assert not re.search(r"@@?[A-Z]+@@?", (ROOT / name).read_text()), name
