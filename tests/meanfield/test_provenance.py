"""The attributes every prediction carries."""

import os
import subprocess

import meanfield
from meanfield.provenance import git_revision, provenance


def test_every_dataset_says_where_it_comes_from():
    expected = {"git_revision", "versions", "device", "dtype", "seed"}
    assert set(provenance()) == expected and provenance()["seed"] == "none" and provenance(seed=3)["seed"] == 3
    for dataset in (meanfield.predict_rank(2, 100), meanfield.predict_spectrum("vggt-init", 100)):
        assert expected <= set(dataset.attrs)
        assert dataset.attrs["device"] == "cpu" and dataset.attrs["dtype"] == "float64"
    assert "numpy" in provenance()["versions"] and "torch" not in provenance()["versions"]


def test_revision_of_a_checkout_and_outside_one(tmp_path):
    assert git_revision(tmp_path) == "unknown"
    assert git_revision(tmp_path / "site-packages" / "accel") == "unknown"
    # never the repository of a git hook that runs these tests
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    git("init", "-q")
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=none")
    git(*identity, "commit", "-q", "--allow-empty", "-m", "one")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")[:12]
