"""Runs the Python blocks of README, CONTRIBUTING and docs, each page in a folder of its own.

Blocks are run as they are printed, one namespace for each page, with one exception: a training
takes at most :data:`MOST_STEPS` steps and a resumed one as many again, so that a page may show a
million and its test is short.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
from sybil.document import Document
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import tether
from tether.learning.engine import Engine

MOST_STEPS = 2048
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples_of(page: Path) -> list[Any]:
    document = Document.parse(str(page), PythonCodeBlockParser(), SkipParser())
    return list(document.examples())


WITH_BLOCKS = [page for page in PAGES if examples_of(page)]


def runs_of_the_export_page() -> None:
    """What the commands of the page make, with small budgets."""
    rows = [{"prompt": f"The film {i}", "chosen": " is good.", "rejected": " is"} for i in range(8)]
    small = {"model": "tiny", "total_steps": 8, "batch_size": 4, "sinks": ()}
    answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    tether.train("sft", data=answers, out="runs/sft", **small)
    tether.train("dpo", data=rows, lora=2, out="runs/dpo", **small)
    tether.train("ppo", env="CartPole-v1", out="runs/cartpole", sinks=())
    tether.export("runs/dpo", to="hf", out="models/dpo")
    tether.export("runs/dpo", to="gguf", out="models/dpo-gguf")
    tether.export("runs/cartpole", to="onnx", out="models/cartpole")
    tether.export("runs/cartpole", to="hf", out="models/cartpole-hub", episodes=0)


BEFORE = {"export.md": runs_of_the_export_page}


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, resume = Engine.train, Engine.resume

    @functools.wraps(train)
    def short(self: Any, *arguments: Any, **settings: Any) -> Any:
        steps = settings.get("total_steps") or MOST_STEPS
        settings["total_steps"] = min(steps, MOST_STEPS)
        settings["progress"] = False
        return train(self, *arguments, **settings)

    @functools.wraps(resume)
    def shortly(self: Any, run: Any, **settings: Any) -> Any:
        if settings.get("total_steps"):
            settings["total_steps"] = min(settings["total_steps"], 2 * MOST_STEPS)
        return resume(self, run, **settings)

    monkeypatch.setattr(Engine, "train", short)
    monkeypatch.setattr(Engine, "resume", shortly)
    monkeypatch.chdir(tmp_path)
    # A page is read in a checkout, and a script's own folder is where it imports from.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_envs", raising=False)
    BEFORE.get(page.name, lambda: None)()
    for example in examples_of(page):
        example.evaluate()


def test_there_are_blocks_to_run() -> None:
    names = {page.name for page in WITH_BLOCKS}
    assert {"README.md", "CONTRIBUTING.md", "objectives.md", "rlhf.md"} <= names
