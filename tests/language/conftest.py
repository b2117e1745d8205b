"""Models and data in a folder, and the command line in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_commands import PAIRS, QUESTIONS, Outcome
from toy_texts import CHAT, save_toy

from tether import cli


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that continues, one that chats, and data to learn from."""
    root = tmp_path_factory.mktemp("toys")
    made = {
        "plain": save_toy(root / "plain"),
        "chat": save_toy(root / "chat", CHAT),
        "questions": root / "questions.jsonl",
        "pairs": root / "pairs.jsonl",
        "talk": root / "talk.jsonl",
        "prompts": root / "prompts.jsonl",
        "ranked": root / "ranked.jsonl",
    }
    rows: dict[str, list[dict[str, Any]]] = {
        "questions": QUESTIONS,
        "pairs": PAIRS,
        "talk": [
            {
                "messages": [
                    {"role": "user", "content": f"Is {row['prompt']}"},
                    {"role": "assistant", "content": row["completion"].strip()},
                ]
            }
            for row in QUESTIONS
        ],
        "prompts": [{"prompt": f"The answer {i} is"} for i in range(6)],
        "ranked": [{"prompt": f"Is {i}?", "completions": ["yes", "no", "a"]} for i in range(6)],
    }
    for name, content in rows.items():
        made[name].write_text("".join(json.dumps(row) + "\n" for row in content))
    return made


@pytest.fixture
def tether_(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call
