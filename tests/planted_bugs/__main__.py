"""Plants known bugs, one at a time in a copy of the project, and reports the tests that do not notice.

`python -m tests.planted_bugs [name ...]` runs the lists of this folder (all, or the named ones). A list is a TOML file
of [[bug]] tables: file (the source), old (text that occurs in it exactly once), new (its replacement), test (the pytest
node id that must fail). Exit code 1 when a bug goes unnoticed, or a test fails without one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).resolve().parent
COPIED = ("meanfield", "accel", "experiments", "tests", "pyproject.toml")


def load(names: list[str]) -> list[dict[str, str]]:
    """The bugs of the named lists, each checked to apply to exactly one place."""
    bugs = []
    for path in sorted(LISTS.glob("*.toml")):
        if names and path.stem not in names:
            continue
        for bug in tomllib.loads(path.read_text())["bug"]:
            found = (ROOT / bug["file"]).read_text().count(bug["old"])
            if found != 1:
                raise SystemExit(f"{path.name}: {bug['old']!r} occurs {found} times in {bug['file']}; make it unique")
            bugs.append(bug | {"list": path.stem})
    return bugs


def passes(copy: Path, test: str) -> bool:
    """Whether the test passes in the copy; a test that cannot be collected counts as an error, not as a failure."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    code = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest could not run {test} (exit code {code})")
    return code == 0


def main(names: list[str]) -> int:
    """Print one line for each bug and return the number that no test noticed."""
    bugs = load(names)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for item in COPIED:
            source = ROOT / item
            ignore = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(source, copy / item, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
        healthy = {test: passes(copy, test) for test in sorted({bug["test"] for bug in bugs})}
        unnoticed = [test for test, fine in healthy.items() if not fine]
        for test in unnoticed:
            print(f"FAILS WITHOUT A BUG  {test}")
        for bug in bugs:
            source = copy / bug["file"]
            text = source.read_text()
            source.write_text(text.replace(bug["old"], bug["new"]))
            caught = not passes(copy, bug["test"])
            source.write_text(text)
            verdict = "caught   " if caught else "UNNOTICED"
            print(f"{verdict}  {bug['list']}: {bug['file']}: {bug['old']!r} -> {bug['new']!r}")
            if not caught:
                unnoticed.append(bug["test"])
    print(f"{len(bugs) - len(unnoticed)} of {len(bugs)} planted bugs were caught")
    return len(unnoticed)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
