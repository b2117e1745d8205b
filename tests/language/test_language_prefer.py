"""Learning from comparisons in rounds: it goes on where it stopped, and people can be asked."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tether import cli
from tether.errors import RunError, UserError
from tether.language.runs import preference_rounds
from tether.language.runs.preference_rounds import Round, RoundSettings, prefer
from tether.preferences.records import Answer, Text
from tether.preferences.store import Store

PROMPTS = [{"prompt": f"The film {word}"} for word in ("was", "is", "and the", "of")]
SMALL = {
    "rounds": 2,
    "comparisons": 4,
    "policy_steps": 8,
    "batch_size": 4,
    "max_new_tokens": 4,
    "reward_learning_rate": 1e-3,
    "learning_rate": 1e-4,
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return str(path)


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def learn(data: str, out: Path, **changes: Any) -> list[Round]:
    arguments = {"teacher": length, "settings": RoundSettings.load({**SMALL, **changes})}
    return prefer(model="tiny", data=data, out=out, progress=False, seed=3, **arguments)


def contents(out: Path) -> tuple[Any, ...]:
    """All that must not depend on whether training was stopped."""
    with Store.open(out / "preferences.sqlite", create=False) as store:
        said = [(a.query, a.preference, a.uuid) for _, a in store.answers()]
    measured = [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
        for run in sorted(out.glob("round-*/*/metrics.jsonl"))
        for line in run.read_text().splitlines()
    ]
    return said, measured


def test_rounds_that_were_stopped_end_as_if_they_were_not(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(data, tmp_path / "whole")
    assert [(one.number, one.labels) for one in whole] == [(0, 4), (1, 8), (2, 8)]
    assert whole[-1].policy == tmp_path / "whole" / "round-1" / "policy"
    trained = preference_rounds._trained

    def killed(method: str, run: Path, progress: bool, **arguments: Any) -> None:
        if run.parent.name == "round-1":
            raise KeyboardInterrupt
        trained(method, run, progress, **arguments)

    monkeypatch.setattr(preference_rounds, "_trained", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(data, tmp_path / "stopped")
    monkeypatch.undo()
    again = learn(data, tmp_path / "stopped")
    assert [one.score for one in again] == [one.score for one in whole]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    with Store.open(tmp_path / "whole" / "preferences.sqlite") as store:
        for query, answer in store.standing():
            first, second = store.items(query.items)
            assert isinstance(first, Text) and isinstance(second, Text)
            assert first.prompt == second.prompt in [row["prompt"] for row in PROMPTS]
            longer = len(first.completion) - len(second.completion)
            assert answer.preference == (0.5 if longer == 0 else float(longer > 0))
    with pytest.raises(RunError, match="was begun with another settings"):
        learn(data, tmp_path / "whole", comparisons=5)


def test_people_are_waited_for(data: str, tmp_path: Path) -> None:
    out = tmp_path / "people"
    ended = threading.Event()

    def annotate() -> None:
        while not ended.wait(0.05):
            if not (out / "preferences.sqlite").exists():
                continue
            with Store.open(out / "preferences.sqlite") as store:
                for lease in store.claim("ada", count=4):
                    store.answer(Answer(lease.query.id, 1.0, "ada"), lease.id)

    person = threading.Thread(target=annotate)
    person.start()
    try:
        rounds = prefer(
            model="tiny",
            data=data,
            teacher="human",
            out=out,
            settings=RoundSettings.load({**SMALL, "rounds": 1, "policy_steps": 4}),
            progress=False,
            poll_seconds=0.05,
        )
    finally:
        ended.set()
        person.join()
    assert [one.labels for one in rounds] == [4, 4] and rounds[0].score is None
    pairs = [
        json.loads(line) for line in (out / "round-0" / "pairs.jsonl").read_text().splitlines()
    ]
    assert [pair["annotator"] for pair in pairs] == ["ada"] * 4


def test_mistakes_are_found_before_a_folder_is_made(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["prefer", "--model", "tiny", "--data", data, "--out", str(out), "--teacher"]
    assert cli.main([*command, "oracle"]) == 2
    assert "which of a text needs a score" in capsys.readouterr().err
    assert cli.main([*command, "nobody:knows"]) == 2
    assert "there is no module 'nobody'" in capsys.readouterr().err
    assert cli.main([*command[:-1], "--teacher", "human", "--mistake", "2"]) == 2
    assert "mistake" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(RunError, match="is not empty; choose another --out"):
        learn(data, out)
    with pytest.raises(UserError, match="nothing to compare; raise --temperature"):
        learn(data, tmp_path / "cold", temperature=1e-6)
