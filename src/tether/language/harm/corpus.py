"""People's harm scores of 990 answers, and prompts that ask for harm, from the package ``pyrit``.

PyRIT (Microsoft, MIT) ships them as CSV and YAML beside its code, which is not imported and whose
requirements are not wanted.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Final, Literal

from tether.errors import UserError
from tether.language.runtime.packages import packaged_file

PACKAGE: Final = "pyrit"
INSTALL: Final = "pip install --no-deps pyrit==1.1.0"

Half = Literal["labeller", "evaluator"]
Split = Literal["train", "held_out"]

_SCORED: Final = (
    "exploits",
    "hate_speech",
    "hate_speech_multi_score",
    "info_integrity",
    "privacy",
    "representational",
    "self_harm",
    "sexual",
    "violence",
    "violence_multi_score",
)
_ANSWERS: Final = "pyrit/datasets/scorer_evals/harm"
_PROMPTS: Final = "pyrit/datasets/seed_datasets/local/adv_bench.prompt"


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer and how harmful people find it.

    Attributes:
        prompt: what was asked.
        answer: what some model said.
        category: the kind of harm, by the file it comes from.
        harm: mean score of the people who read it, in [0, 1].
        people: how many.
        half: whether a labeller or the evaluator may learn from it; all answers to one prompt are
            in one half.
    """

    prompt: str
    answer: str
    category: str
    harm: float
    people: int
    half: Half


@lru_cache(maxsize=1)
def load_scored_answers() -> tuple[ScoredAnswer, ...]:
    """Every scored answer, in the order of the package.

    Raises:
        UserError: the package is missing, or not the one expected.
    """
    return tuple(answer for name in _SCORED for answer in _read(name))


def answers_of(half: Half) -> list[ScoredAnswer]:
    """Those that one side may learn from."""
    return [one for one in load_scored_answers() if one.half == half]


@lru_cache(maxsize=2)
def harmful_prompts(split: Split) -> tuple[str, ...]:
    """Half of AdvBench's 520 requests for harm, in a fixed, shuffled order.

    Args:
        split: what policies learn on, or what they are measured on.

    Raises:
        UserError: the package is missing, or not the one expected.

    Source:
        Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models"
        (2023).
    """
    import yaml

    try:
        content = yaml.safe_load(_text_of(_PROMPTS))
        prompts = [str(seed["value"]).strip() for seed in content["seeds"]]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise _unexpected(_PROMPTS) from error
    wanted = split == "held_out"
    chosen = [text for text in dict.fromkeys(prompts) if (_digest(text)[-1] % 2 == 1) == wanted]
    return tuple(sorted(chosen, key=_digest))


def benign_prompts() -> list[str]:
    """Requests that nobody should decline, half of which sound as if somebody might.

    They are tether's own, after the idea of XSTest.

    Source:
        Röttger et al., "XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large
        Language Models" (2023).
    """
    text = resources.files(__package__).joinpath("benign.txt").read_text(encoding="utf-8")
    return text.splitlines()


def _read(name: str) -> Iterator[ScoredAnswer]:
    path = f"{_ANSWERS}/{name}.csv"
    lines = _text_of(path).splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    rows = csv.DictReader(lines)
    columns = [column for column in rows.fieldnames or () if column.startswith("human_score")]
    if not columns or not {"objective", "assistant_response"} <= set(rows.fieldnames or ()):
        raise _unexpected(path)
    for row in rows:
        try:
            scores = [float(row[column]) for column in columns if row[column]]
            harm = sum(scores) / len(scores)
        except (ValueError, ZeroDivisionError) as error:
            raise _unexpected(path) from error
        prompt, answer = row["objective"].strip(), row["assistant_response"].strip()
        half: Half = "evaluator" if _digest(prompt)[-1] % 2 else "labeller"
        category = name.removesuffix("_multi_score")
        yield ScoredAnswer(prompt, answer, category, harm, len(scores), half)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.casefold().encode()).digest()


def _text_of(name: str) -> str:
    return packaged_file(PACKAGE, name, INSTALL).read_text(encoding="utf-8")


def _unexpected(name: str) -> UserError:
    return UserError(
        f"{name} of the package {PACKAGE} is not in the form of version 1.1.0; run: {INSTALL} "
        "--force-reinstall"
    )
