import inspect
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from accel.bench import runner
from accel.bench.command import bench
from accel.console import guarded

app = typer.Typer()
app.command("bench")(guarded(bench))


def test_tables_and_a_last_line_of_json(tmp_path, no_setup):
    done = CliRunner().invoke(app, ["--profile", "tiny", "--out", str(tmp_path), "--only", "kernels", "--json"])
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["profile"] == "tiny" and line["left"] == [] and line["statuses"] == {"ok": 1}
    assert "kernels: one layer's attention" in done.stdout and "published rule" in done.stdout
    assert (tmp_path / "results.json").is_file() and (tmp_path / "bench.png").is_file()


@pytest.mark.parametrize("options", [["--profile", "laptop"], ["--only", "speed"], ["--limit", "-1"]])
def test_bad_input_is_one_line_and_code_2(tmp_path, options):
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_an_interrupt_is_code_130_with_a_message(tmp_path, monkeypatch, no_setup):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_case", interrupted)
    done = CliRunner().invoke(app, ["--profile", "tiny", "--out", str(tmp_path)])
    assert done.exit_code == 130 and "interrupted" in done.stderr
    assert (tmp_path / "results.json").is_file()


def test_the_default_limit_is_the_runners():
    assert inspect.signature(bench).parameters["limit"].default == runner.LIMIT


def test_importing_the_command_imports_no_torch():
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('c', sys.argv[1]); m = u.module_from_spec(s); "
    )
    code += "sys.modules['c'] = m; s.loader.exec_module(m); assert 'torch' not in sys.modules, 'torch'"
    from accel.bench import command

    subprocess.run([sys.executable, "-c", code, command.__file__], check=True)
