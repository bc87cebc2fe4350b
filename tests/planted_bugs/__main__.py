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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).resolve().parent
COPIED = ("meanfield", "accel", "experiments", "tests", "pyproject.toml")
WORKERS = os.cpu_count() or 1


def load(names: list[str]) -> list[dict[str, str]]:
    """The bugs of the named lists, each checked to apply to exactly one place."""
    unknown = set(names) - {path.stem for path in LISTS.glob("*.toml")}
    if unknown:
        raise SystemExit(f"{sorted(unknown)} are not lists in tests/planted_bugs; name a .toml file without its ending")
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


def make_copy(folder: Path) -> Path:
    """The project's sources in `folder`."""
    for item in COPIED:
        source = ROOT / item
        if source.is_dir():
            shutil.copytree(source, folder / item, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, folder / item)
    return folder


def passes(copy: Path, *tests: str) -> bool:
    """Whether the tests pass in the copy; a test that cannot be collected counts as an error, not as a failure."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {tests} (exit code {done.returncode}):\n{done.stdout[-2000:]}")
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Print one line for each bug and return the number that no test noticed."""
    bugs = load(names)
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for worker in range(WORKERS):
            copies.put(make_copy(Path(folder) / str(worker)))
        first = copies.get()
        if not passes(first, *sorted({bug["test"] for bug in bugs})):
            raise SystemExit("the tests fail without a planted bug; make them pass first")
        copies.put(first)

        def caught(bug: dict[str, str]) -> bool:
            copy = copies.get()
            source = copy / bug["file"]
            text = source.read_text()
            try:
                source.write_text(text.replace(bug["old"], bug["new"]))
                return not passes(copy, bug["test"])
            finally:
                source.write_text(text)
                copies.put(copy)

        with ThreadPoolExecutor(WORKERS) as pool:
            noticed = list(map(report, bugs, pool.map(caught, bugs)))
    print(f"{sum(noticed)} of {len(bugs)} planted bugs were caught")
    return len(bugs) - sum(noticed)


def report(bug: dict[str, str], noticed: bool) -> bool:
    """Print what became of one bug."""
    verdict = "caught   " if noticed else "UNNOTICED"
    print(f"{verdict}  {bug['list']}: {bug['file']}: {bug['old']!r} -> {bug['new']!r}", flush=True)
    return noticed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
