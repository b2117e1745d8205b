import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Gymnasium's own HalfCheetah makes MuJoCo write MUJOCO_LOG.TXT where a test runs."""
    monkeypatch.chdir(tmp_path)
