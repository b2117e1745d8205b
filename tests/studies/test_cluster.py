"""Studies on a Ray cluster: two machines of one core, one of which dies while it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lose_a_machine import trials

from tether.cli import main
from tether.studies.trials import run_trials

pytest.importorskip("ray", reason="no ray: pip install 'tether-rl[scale]' to test clusters")

HERE = Path(__file__).parent


def run(*command):
    path = os.pathsep.join([str(HERE), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    for name in [name for name in environment if name.startswith("RAY_")]:
        del environment[name]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_trial_goes_on_where_its_machine_died(tmp_path):
    told, _ = run(HERE / "lose_a_machine.py", tmp_path / "cluster")
    assert 0 < told["rows_at_death"] < told["rows"]
    assert not told["done_at_death"]
    assert told["cores_left"] == 1
    assert told["first"] != told["second"]
    # It went on from a checkpoint, in the middle.
    begun, again = told["begins"]
    # Rows were counted shortly before the machine died.
    assert begun == 0 < again < told["rows"]
    assert told["authentication"] == "token"
    assert not told["jax_started"]
    run_trials(trials(), tmp_path / "alone", workers=1, progress=False)
    assert told["names"] == [trial.name for trial in trials()]
    for name in told["names"]:
        there, here = (tmp_path / place / name / "result.json" for place in ("cluster", "alone"))
        assert there.read_bytes() == here.read_bytes()


def test_a_study_on_a_cluster_is_the_study(tmp_path):
    small = ["--episodes", "32", "--batch-sizes", "1", "4", "--step-costs", "0", "--json"]
    study = ["-m", "tether", "study", "variance", *small]
    there, told = run(*study, "--out", tmp_path / "there", "--cluster", "local")
    here, _ = run(*study, "--out", tmp_path / "here", "--workers", "1")
    assert there == here
    assert "Ray cluster local: 1 machines" in told
    for trial in ("start-0", "half-way-0"):
        results = [tmp_path / place / trial / "result.json" for place in ("there", "here")]
        assert results[0].read_bytes() == results[1].read_bytes()
    assert not list((tmp_path / "there").glob(".study-*"))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "cannot reach a Ray cluster at 127.0.0.1:1: Connection refused"),
        ("lokal", "--cluster is 'lokal'; expected local, or the HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_in_one_line(address, said, tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["study", "variance", "--cluster", address, "--out", str(out)]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
    assert not out.exists()
