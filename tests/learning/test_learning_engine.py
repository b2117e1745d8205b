"""What the one engine keeps: who trained a run, whose error it was, where runs go."""

import json
from pathlib import Path
from typing import Any

import pytest
from least_squares_learner import LeastSquares

from tether.engines import engine_of_run
from tether.errors import UserError
from tether.learning import BaseCallback, Run
from tether.learning.engine import default_folder


def test_runs_of_earlier_versions_say_their_engine(tmp_path: Path) -> None:
    for name, spec in (("old", {"room": "language"}), ("older", {"env": None}), ("own", {})):
        with Run.create(tmp_path / name, method="x", config={}, spec=spec):
            pass
        record = json.loads((tmp_path / name / "run.json").read_text())
        record.pop("engine")
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    assert Run.open(tmp_path / "old").engine == "language"
    assert Run.open(tmp_path / "older").engine == "control"
    assert Run.open(tmp_path / "own").engine is None
    with pytest.raises(UserError, match="trained by x, which no engine of tether has"):
        engine_of_run(tmp_path / "own")


def test_runs_of_an_unknown_engine_are_refused(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", method="x", config={}, spec={}, engine="quantum"):
        pass
    with pytest.raises(UserError, match="the engine 'quantum'; this tether has control, language"):
        engine_of_run(tmp_path / "run")


class Ending(BaseCallback):
    def on_end(self, run: Any, learner: Any) -> None:
        self.outcome = run.outcome
        raise OSError("the disk of the callback is full")


class Raising(BaseCallback):
    def on_iteration(self, run: Any, learner: Any, metrics: Any) -> None:
        raise UserError("the error that counts")


def test_an_error_of_on_end_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ending = Ending()
    with (
        Run.create(tmp_path / "run", method="x", config={}, spec={}) as run,
        pytest.raises(UserError, match="the error that counts"),
    ):
        run.train(LeastSquares(0), 100, callbacks=[ending, Raising()], progress=False, sinks=())
    assert (ending.outcome, run.outcome) == ("failed", "failed")
    assert "on_end of a callback raised OSError: the disk of the callback is full" in caplog.text
    with (
        Run.create(tmp_path / "other", method="x", config={}, spec={}) as run,
        pytest.raises(OSError, match="the disk of the callback"),
    ):
        run.train(LeastSquares(0), 10, callbacks=[ending], progress=False, sinks=())
    assert ending.outcome == "done"


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = set()
    for _ in range(4):
        folder = default_folder("dpo", "owner/model name", 3)
        folder.mkdir(parents=True)
        names.add(folder.name)
    assert len(names) == 4
    assert all(name.startswith("dpo-owner-model-name-3-") for name in names)
