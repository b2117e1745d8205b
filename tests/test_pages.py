"""The commands that README and docs print, run page by page as they stand, with small budgets.

Every line of a code block without a language (or with sh, bash or console) that begins with a
program is run in the order of its page, or it is in :data:`NOT_RUN` with the reason. What a reader
is taken to have already (a run of an earlier page, a file of his own) is in :data:`GIVEN`.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tether import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "make": "installs, or runs everything",
    "source": "belongs to the shell",
    "pip": "installs",
    "hf": "needs an account",
    "tether label": "serves until it is stopped; tests/web does",
    "accelerate launch": "starts processes; tests/language/test_language_processes.py does",
    "torchrun": "starts processes; tests/language/test_language_processes.py does",
    "lm_eval": "another project's command",
    "vllm": "another project's command",
    "llama-cli": "another project's command",
    "echo": "writes a file for ollama",
    "ollama": "another project's command",
    "tensorboard": "a server",
    "python benchmarks/": "an hour, or a GPU",
    "python -m tether.language.pretraining": "half an hour; tests/language/test_tiny.py runs it",
    "tether demo": "minutes",
    "tether chat": "needs a terminal",
    "tether export RUN ": "names no run; the page's later commands do",
    "tether study figure3": "hours; tests/studies/test_figure3.py runs it small",
    "tether study table1": "hours",
    "tether study cliff": "minutes; tests/studies/test_cliff.py runs it small",
    "tether study hacking": "hours; tests/studies/test_hacking.py runs it small",
    "tether study frontier": "an hour; tests/studies/test_frontier.py runs it small",
    "tether study backflip": "hours; tests/studies/test_backflip.py runs it small",
    "tether study careless": "hours; tests/studies/test_christiano.py looks at its trainings",
    "tether study christiano": "hours; tests/studies/test_christiano.py runs it small",
    "tether prefer --env Hopper-v5 --labels 700 --teacher human": "waits for people",
    "tether study labeller": "minutes; tests/studies/test_labeller.py runs it small",
    "tether study rlaif": "most of an hour; tests/studies/test_rlaif.py runs it small",
    "tether study harmless": "most of an hour; tests/studies/test_harmless.py runs it small",
    "tether judge --model http": "needs a server; tests/language/test_judge_server.py has one",
    "tether study overoptimisation": "an hour; tests/studies has it small",
    "tether study three-steps": "minutes; tests/studies/test_three_steps.py runs it small",
}
"""Beginnings of commands that are not run, and why."""

PROGRAMS = {"tether", "python", *(beginning.split()[0] for beginning in NOT_RUN)}

TUNING = {"--total-steps": "4", "--batch-size": "4", "--micro-batch-size": "4", "--limit": "16"}
BUDGETS = {
    "train": {"--total-steps": "2048"},
    "train trpo": {"--total-steps": "2048", "--steps-per-iteration": "1024"},
    "train vpg": {"--total-steps": "2048", "--steps-per-iteration": "1024"},
    "train reinforce": {"--total-steps": "1024", "--steps-per-iteration": "512"},
    "train actor-critic": {"--total-steps": "512"},
    "train bc": {"--evaluation-episodes": "1", "--total-steps": "2048"},
    "train cem": {"--total-steps": "1000", "--population": "8"},
    "prefer": {"--total-steps": "4096", "--labels": "8"},
    "resume": {"--total-steps": "4096"},
    "resume runs/mine": {"--total-steps": "8"},
    "evaluate": {"--episodes": "2"},
    "evaluate runs/cheetah": {"--episodes": "1"},
    "evaluate runs/sft": {"--limit": "3", "--max-new-tokens": "4"},
    "generate": {"--max-new-tokens": "8"},
    "sft": TUNING,
    "sft --model tiny --data answers.jsonl": {
        **TUNING,
        "--total-steps": "96",
        "--learning-rate": "1e-3",
        "--held-out": "0",
    },
    "reward": TUNING,
    "dpo": TUNING,
    "rlhf": {**TUNING, "--minibatch-size": "4", "--max-new-tokens": "4"},
    # What runs/sft was tuned on ends early, but not within four tokens.
    "rlhf --model runs/sft": {**TUNING, "--minibatch-size": "4", "--max-new-tokens": "32"},
    "judge": {"--model": "tiny", "--limit": "3", "--max-words": "12", "--shots": "0"},
    "prefer --model": {
        "--rounds": "1",
        "--comparisons": "4",
        "--policy-steps": "4",
        "--batch-size": "4",
        "--max-new-tokens": "4",
    },
    "best-of-n": {"--n": "4", "--limit": "4", "--max-new-tokens": "4"},
    "study variance": {"--episodes": "512"},
    "study lambda": {"--episodes": "64", "--critics": "1"},
}
"""Options that a command is given instead of its own; those of the longest beginning count."""

VALUES = {
    "judge:positive": "judge:positive@tiny",
    "smollm2-135m-instruct": "tiny",
    "HalfCheetah-v5": "Hopper-v5",
    "0,1,2": "0-0",
}
"""Words that are replaced: a larger model, longer episodes, several seeds."""

PAIRS = [
    {"prompt": f"The film {i}", "chosen": " is good.", "rejected": " is bad."} for i in range(8)
]
RANKINGS = [{"prompt": f"The film {i}", "completions": [" is good.", " is bad."]} for i in range(8)]
VERDICTS = [
    {"prompt": f"The film {i}", "completion": " is good.", "label": i % 2 == 0} for i in range(8)
]
PROMPTS = [{"prompt": f"The film {i}"} for i in range(4)]
ANSWERS = [{"prompt": f"The film {i}", "completion": " is good."} for i in range(8)]
FILES = {
    "pairs.jsonl": PAIRS,
    "comparisons.jsonl": RANKINGS,
    "verdicts.jsonl": VERDICTS,
    "prompts.jsonl": PROMPTS,
    "answers.jsonl": ANSWERS,
    "mine.jsonl": PROMPTS,
}
"""Data of the reader's own, in every page's folder."""

MY_ENVS = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("Homing-v0", CartPoleEnv, max_episode_steps=100)
"""

REWARDS = """
def says(prompts, completions, **columns):
    return [float("good" in completion) for completion in completions]


def short(prompts, completions):
    return [-float(len(completion)) for completion in completions]
"""

SFT = "tether sft --model tiny --data answers.jsonl --out runs/sft"
REWARD = "tether reward --model tiny --data comparisons.jsonl --out runs/reward"
GIVEN = {
    "dpo.md": [SFT, REWARD],
    "judges.md": [SFT],
    "reward.md": [SFT],
    "rlhf.md": [SFT, REWARD],
}
"""Commands of other pages that a page goes on from."""


class Printed(NamedTuple):
    """A command as a page prints it, and what is printed below it (after a ``$``)."""

    line: str
    output: tuple[str, ...]


def printed(page: Path) -> Iterator[Printed]:
    """The commands of a page, in their order; a loop of the shell is unrolled."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if match[1] not in ("", "sh", "bash", "console"):
            continue
        lines = _unrolled(re.sub(r"\\\n\s*", "", match[2]).splitlines())
        shows_output = any(line.startswith("$ ") for line in lines)
        for number, line in enumerate(lines):
            bare = line.removeprefix("$ ").strip()
            if bare.split(" ")[0] not in PROGRAMS or (shows_output and not line.startswith("$ ")):
                continue
            below: list[str] = []
            for further in lines[number + 1 :] if shows_output else ():
                if further.startswith("$ "):
                    break
                below.append(further)
            yield Printed(bare, tuple(below))


def _unrolled(lines: list[str]) -> list[str]:
    found: list[str] = []
    loop: tuple[str, list[str]] | None = None
    body: list[str] = []
    for line in lines:
        if begins := re.fullmatch(r"for (\w+) in (.+); do", line):
            loop, body = (begins[1], begins[2].split()), []
        elif loop is None:
            found.append(line)
        elif line == "done":
            name, values = loop
            found += [row.replace(f"${name}", value) for value in values for row in body]
            loop = None
        else:
            body.append(line.strip())
    return found


def reason_not_to_run(line: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


def arguments_of(line: str) -> list[str]:
    """What `tether` is given: the page's words, globs expanded, with a small budget."""
    words = [VALUES.get(word, word) for word in shlex.split(line, comments=True)[1:]]
    found = [
        path
        for word in words
        for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    said = " ".join(found) + " "
    fits = [beginning for beginning in BUDGETS if said.startswith(f"{beginning} ")]
    for option, value in BUDGETS[max(fits, key=len)].items() if fits else ():
        if option in found:
            found[found.index(option) + 1] = value
        else:
            found += [option, value]
    return found


def test_every_command_is_run_or_has_a_reason() -> None:
    commands = [one.line for page in PAGES for one in printed(page)]
    strange = [c for c in commands if not c.startswith("tether ") and not reason_not_to_run(c)]
    assert strange == []
    assert sum(reason_not_to_run(c) is None for c in commands) > 60
    unused = [start for start in NOT_RUN if not any(c.startswith(start) for c in commands)]
    assert set(unused) <= {"tensorboard", "tether demo", "tether chat", "source", "pip"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = [one for one in printed(page) if reason_not_to_run(one.line) is None]
    if not commands:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, rows in FILES.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("my_envs.py").write_text(MY_ENVS, encoding="utf-8")
    Path("rewards.py").write_text(REWARDS, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    text = page.read_text(encoding="utf-8")
    # A page shows what is in a file right above the block of it: `name.toml`:
    for name, content in re.findall(r"`([\w-]+\.toml)`[^`]*```toml\n(.*?)^```$", text, re.M | re.S):
        Path(name).write_text(content, encoding="utf-8")
    given = [Printed(line, ()) for line in GIVEN.get(page.name, ())]
    for command in (*given, *commands):
        code = cli.main(arguments_of(command.line))
        said = capsys.readouterr()
        fails = any(line.startswith("tether: ") for line in command.output)
        assert code == (2 if fails else 0), f"{command.line}\n{said.err}"
        for line in command.output if fails else ():
            assert line.split("...")[0] in said.err, command.line
