"""Several processes on one store, and processes that are killed; `benchmarks/store.py`, small."""

import sys
from pathlib import Path

import pytest

from tether.preferences.store import Store

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import store as benchmark


def test_processes_that_answer_at_once_lose_and_double_nothing(place: str) -> None:
    with Store.open(place) as store:
        figures = benchmark.load(place, store, annotators=3, answers=40, at_once=3)
        assert figures["answers"] == 120
        assert store.counts().open == 0 and not any(one.late for one in store.annotators())


def test_a_killed_writer_has_kept_what_it_acknowledged(place: str) -> None:
    with Store.open(place) as store:
        figures = benchmark.kill(place, store, times=2, seed=1)
        assert figures["acknowledged"] >= 2
        assert store.counts().answered > 0


def test_a_lost_answer_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "a.sqlite")
    with Store.open(place) as store:
        answers = store.answers
        monkeypatch.setattr(store, "answers", lambda after: answers(after)[1:])
        with pytest.raises(AssertionError, match="acknowledged"):
            benchmark.kill(place, store, times=1)
