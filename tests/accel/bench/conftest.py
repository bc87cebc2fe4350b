import pytest

from accel.bench import workspace
from accel.bench.reference import testbed_profile
from tests.accel.bench.fakes import FEW, RATES


@pytest.fixture(scope="session")
def profile():
    """The testbed's profile for few options."""
    return testbed_profile(options=FEW)


@pytest.fixture
def no_setup(monkeypatch, profile):
    """Known rates and a ready profile: nothing is measured before the cases."""
    monkeypatch.setattr(workspace.Workspace, "speeds", lambda self, case: RATES)
    monkeypatch.setattr(workspace.Workspace, "profile", lambda self: profile)
    monkeypatch.setattr(workspace.Workspace, "setup_seconds", lambda self, case: 0.0)
