"""Alarms on measurements of our own making."""

import math

import numpy as np
import pytest

from tether.errors import UserError
from tether.learning import Run, read_metrics
from tether.learning.alarms import Drift, Outside, ProxyWithoutTruth, parse_alarm


class Scripted:
    """A learner that measures what a list says."""

    def __init__(self, rows):
        self.rows, self.steps = rows, 0

    def iterate(self):
        self.steps += 10
        return dict(self.rows[self.steps // 10 - 1])

    def state(self):
        return {"steps": self.steps}

    def restore(self, state):
        self.steps = state["steps"]


def rows_of(**series):
    names = [name.replace("__", "/") for name in series]
    return [dict(zip(names, values, strict=True)) for values in zip(*series.values(), strict=True)]


def with_steps(rows):
    return [{"step": 10 * (i + 1), **row} for i, row in enumerate(rows)]


def trained(rows, tmp_path, *alarms, total=None, name="run"):
    run = Run.create(tmp_path / name, engine="test", method="scripted", config={}, spec={})
    learner = Scripted(rows)
    with run:
        run.train(learner, total or 10 * len(rows), callbacks=alarms, sinks=(), progress=False)
    return run


def test_an_alarm_is_a_metric_and_one_line(tmp_path, capsys) -> None:
    run = trained(rows_of(a__b=[1, 2, 9, 1, 9]), tmp_path, Outside("a/b", high=3.0))
    assert [row["alarm/a/b"] for row in read_metrics(run.path)] == [0, 0, 1, 1, 1]
    lines = [line for line in capsys.readouterr().err.splitlines() if "alarm" in line]
    assert lines == ["alarm a/b at step 30: a/b is 9, above 3"]


def test_an_alarm_may_stop_the_training(tmp_path) -> None:
    run = trained(rows_of(a=[1, 2, 9, 1]), tmp_path, Outside("a", high=3.0, stop=True))
    assert [row["step"] for row in read_metrics(run.path)] == [10, 20, 30]
    assert run.outcome == "stopped"


def test_a_resume_goes_on_as_if_it_had_never_stopped(tmp_path, capsys) -> None:
    values = [1.0] * 12 + [5.0] * 8
    whole = trained(rows_of(a=values), tmp_path, Drift("a", patience=3), name="whole")
    for cut in (50, 130, 140, 170):
        run = trained(rows_of(a=values), tmp_path, Drift("a", patience=3), total=cut, name=f"{cut}")
        again, learner = Run.open(run.path), Scripted(rows_of(a=values))
        capsys.readouterr()
        with again:
            again.resume(learner)
            again.train(learner, 200, callbacks=[Drift("a", patience=3)], sinks=(), progress=False)
        expected = [row["alarm/a/drift"] for row in read_metrics(whole.path)]
        assert [row["alarm/a/drift"] for row in read_metrics(run.path)] == expected
        assert ("alarm" in capsys.readouterr().err) == (cut < 150)
    assert sum(expected) == 6


def test_runs_side_by_side_share_an_alarm_and_not_its_state(tmp_path) -> None:
    alarm = Outside("a", high=3.0, patience=2)
    one, other = (
        Run.create(tmp_path / n, engine="t", method="m", config={}, spec={}) for n in "ab"
    )
    learner = Scripted([])
    for run in (one, other):
        alarm.on_start(run, learner)
    seen = []
    for value, run in ((9.0, one), (9.0, other), (1.0, other), (9.0, one), (9.0, other)):
        metrics = {"a": value}
        alarm.on_iteration(run, learner, metrics)
        seen.append(metrics["alarm/a"])
    assert seen == [0, 0, 0, 1, 0]


def test_bounds_and_patience() -> None:
    rows = with_steps(rows_of(a=[5, 1, math.nan, 1, 5, 1, 1, 1]))
    assert Outside("a", low=2.0).replay(rows) == 20
    assert Outside("a", low=2.0, patience=2).replay(rows) == 40
    assert Outside("a", low=2.0, patience=3).replay(rows) == 80
    assert Outside("a", high=5.0).replay(rows) is None
    assert Outside("b", high=5.0).replay(rows) is None


@pytest.mark.parametrize(
    ("direction", "up", "down"), [("both", 110, 110), ("up", 110, None), ("down", None, 110)]
)
def test_drift_is_measured_from_the_first_ten(direction, up, down) -> None:
    first = [1.0, 3.0] * 5
    for last, expected in ((4.1, up), (0.9, down), (3.9, None), (1.1, None)):
        rows = with_steps(rows_of(length=[*first, last]))
        assert Drift("length", direction=direction).replay(rows) == expected


def curves(truth, noise=0.0):
    """A proxy that rises from 0 to 1 in a hundred reports, and a truth."""
    rng = np.random.default_rng(0)
    proxy = np.linspace(0, 1, 100) + noise * rng.normal(size=100)
    truth = np.asarray(truth) + noise * rng.normal(size=100)
    return with_steps(rows_of(return__mean=proxy.tolist(), true_return__mean=truth.tolist()))


def test_the_truth_that_turns_and_the_one_that_follows() -> None:
    time = np.linspace(0, 1, 100)
    turns = 4 * time * (1 - time)
    raised = ProxyWithoutTruth().replay(curves(turns))
    # The truth has lost half of its range at 0.85, and the averages lag by half a window.
    assert 850 <= raised <= 950
    assert ProxyWithoutTruth().replay(curves(turns, 0.02)) is not None
    for honest in (time, np.sqrt(time), np.minimum(1, 3 * time)):
        assert ProxyWithoutTruth().replay(curves(honest)) is None
        assert ProxyWithoutTruth().replay(curves(honest, 0.02)) is None
    falls = ProxyWithoutTruth().replay(curves(-time))
    assert falls is not None


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("policy/initial_kl>0.5", Outside, {"metric": "policy/initial_kl", "high": 0.5}),
        ("true_return/correlation < 2e-1", Outside, {"low": 0.2, "high": math.inf}),
        ("drift:episode/length", Drift, {"metric": "episode/length"}),
        ("proxy-without-truth", ProxyWithoutTruth, {"truth": "true_return/mean"}),
    ],
)
def test_alarms_of_the_command_line(text, kind, expected) -> None:
    alarm = parse_alarm(text)
    assert type(alarm) is kind
    assert {name: getattr(alarm, name) for name in expected} == expected


@pytest.mark.parametrize("text", ["", "loss", "a>b", "drift:", "a>1.2.3", ">3", "a=3"])
def test_what_is_no_alarm_is_one_line(text) -> None:
    with pytest.raises(UserError, match="expected METRIC>NUMBER"):
        parse_alarm(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Outside("a"),
        lambda: Outside("a", low=2, high=1),
        lambda: Outside("a", high=1, patience=0),
        lambda: Drift("a", factor=1.0),
        lambda: Drift("a", direction="sideways"),
        lambda: Drift("a", patience=0),
        lambda: ProxyWithoutTruth(lost=0),
        lambda: ProxyWithoutTruth(window=0),
    ],
)
def test_settings_that_could_never_or_always_alarm_are_refused(make) -> None:
    with pytest.raises(UserError, match="expected"):
        make()
