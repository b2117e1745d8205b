"""Callbacks are called in order, may add measurements, and may stop training."""

import math
from pathlib import Path

import pytest
from least_squares_learner import LeastSquares
from test_learning_run import assert_same_run, make

from tether.errors import UserError
from tether.learning import BaseCallback, Every, Run, StopOnReturn, read_metrics

QUIET = {"progress": False, "sinks": (), "checkpoint_every_seconds": None}


class Record(BaseCallback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.stop_at = stop_at

    def on_start(self, run, learner) -> None:
        self.calls.append(("start", learner.steps))

    def on_iteration(self, run, learner, metrics) -> bool | None:
        assert {"loss/value", "time/seconds", "time/steps_per_second"} <= set(metrics)
        self.calls.append(("iteration", learner.steps))
        return learner.steps != self.stop_at

    def on_checkpoint(self, run, path) -> None:
        assert path in run.checkpoints()
        self.calls.append(("checkpoint", path.name))

    def on_end(self, run, learner) -> None:
        self.calls.append(("end", run.outcome))


def test_the_order_of_calls(tmp_path: Path) -> None:
    record = Record()
    make(tmp_path / "r").train(
        LeastSquares(7), 24, checkpoint_every=16, callbacks=[record], **QUIET
    )
    assert record.calls == [
        ("start", 0),
        ("iteration", 8),
        ("iteration", 16),
        ("checkpoint", "step_000000000016.safetensors"),
        ("iteration", 24),
        ("checkpoint", "step_000000000024.safetensors"),
        ("end", "done"),
    ]


def test_false_stops_after_a_checkpoint_and_the_run_can_go_on(tmp_path: Path) -> None:
    record, after = Record(stop_at=80), Record()
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    run.train(learner, 800, callbacks=[record, after], **QUIET)
    assert run.outcome == "stopped"
    assert learner.steps == run.load()["steps"] == read_metrics(run.path)[-1]["step"] == 80
    # The one after it in the list still saw the iteration that stopped.
    assert after.calls[-3:] == record.calls[-3:]
    assert record.calls[-3:] == [
        ("iteration", 80),
        ("checkpoint", "step_000000000080.safetensors"),
        ("end", "stopped"),
    ]
    run.train(learner, 160, **QUIET)
    straight = make(tmp_path / "straight")
    straight.train(LeastSquares(7), 160, **QUIET)
    assert_same_run(run.path, straight.path)


def test_the_end_is_told_also_when_the_learner_fails(tmp_path: Path) -> None:
    record = Record()
    with pytest.raises(UserError, match="nan"):
        make(tmp_path / "r").train(LeastSquares(7, fail_at=16), 80, callbacks=[record], **QUIET)
    assert record.calls[-1] == ("end", "failed")


def test_stop_on_return_stops_at_the_first_iteration_that_reaches_it(tmp_path: Path) -> None:
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    # The first iteration's return is NaN, which must not count.
    run.train(learner, 100_000, callbacks=[StopOnReturn(-0.5)], **QUIET)
    returns = [row["return/mean"] for row in read_metrics(run.path)]
    assert run.outcome == "stopped"
    assert math.isnan(returns[0])
    assert returns[-1] >= -0.5
    assert not any(value >= -0.5 for value in returns[:-1])


def test_stop_on_return_watches_the_named_metric_and_ignores_its_absence(tmp_path: Path) -> None:
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    run.train(learner, 80, callbacks=[StopOnReturn(0.0, "evaluation/return")], **QUIET)
    assert run.outcome == "done"
    run.train(learner, 800, callbacks=[StopOnReturn(2, "data/epoch")], **QUIET)
    assert learner.steps == 128


@pytest.mark.parametrize("steps", [8, 20, 80, 1000])
def test_every_fires_once_per_multiple_passed(tmp_path: Path, steps: int) -> None:
    fired: list[int] = []
    hook = Every(steps, lambda run, learner, metrics: fired.append(learner.steps))
    make(tmp_path / "r").train(LeastSquares(7), 400, callbacks=[hook], **QUIET)
    assert fired == [s for s in range(8, 401, 8) if s // steps > (s - 8) // steps]


def test_what_every_returns_is_written_and_survives_a_resume(tmp_path: Path) -> None:
    def evaluate(run, learner, metrics) -> dict[str, float]:
        return {"evaluation/norm": float((learner.weight**2).sum())}

    run, learner = make(tmp_path / "r"), LeastSquares(7)
    run.train(learner, 56, callbacks=[Every(80, evaluate)], **QUIET)
    run, learner = Run.open(run.path), LeastSquares(7)
    run.resume(learner)
    run.train(learner, 400, callbacks=[Every(80, evaluate)], **QUIET)
    rows = read_metrics(run.path)
    assert [row["step"] for row in rows if "evaluation/norm" in row] == [80, 160, 240, 320, 400]
    straight = make(tmp_path / "straight")
    straight.train(LeastSquares(7), 400, callbacks=[Every(80, evaluate)], **QUIET)
    assert_same_run(run.path, straight.path)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UserError, match="steps is 0, expected at least 1"):
        Every(0, lambda run, learner, metrics: None)
    with pytest.raises(UserError, match="threshold is nan"):
        StopOnReturn(math.nan)
