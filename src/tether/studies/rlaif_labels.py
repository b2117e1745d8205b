"""Comparisons of the RLAIF study, and three ways to label them: by truth, by a judge, by place.

The two texts of a comparison are two samples of one policy in the order in which they were drawn,
so that the place of a text says nothing about it: a judge that always says "the first" gives
labels that are independent of quality.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from tether.language.data.tokens import Pair
from tether.language.judge.audit import audit
from tether.language.judge.judges import Judge
from tether.language.judge.labelling import Pair as Asked
from tether.language.judge.labelling import label
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel
from tether.language.reviews.prompts import gold_scorer
from tether.learning.storage.durable import replaced, write_json
from tether.studies.sentiment import ROWS, texts_of

Labeller: TypeAlias = Literal["gold", "ai", "null"]
"""Who labels: the gold scorer, the judge, or a judge that always says "the first"."""

PAIRS: Final = "pairs.jsonl"
LABELS: Final = "labels.json"


class Comparison(NamedTuple):
    """Two completions of a prompt in the order in which they were sampled.

    Attributes:
        prompt: token ids.
        first: token ids.
        second: token ids.
        gold: whether the gold scorer likes the first better: 1, 0, or 0.5 where it likes both
            equally.
        held_out: whether it is for measuring labels and reward models alone.
    """

    prompt: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]
    gold: float
    held_out: bool


def sample_comparisons(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    new_tokens: int,
    held_out: int,
    seed: int,
) -> list[Comparison]:
    """Each completion of a prompt beside the next; equal completions are not compared.

    Other pairs would say little new: a judge that reads each text alone gives differences of
    scores, and these add up.

    Args:
        model: what to sample from.
        prompts: token ids.
        samples: completions of each prompt but the last `held_out`, which have two.
        new_tokens: most tokens of a completion.
        held_out: how many of the last prompts are for measuring alone.
        seed: of the samples.
    """
    counts = [samples] * (len(prompts) - held_out) + [2] * held_out
    completions = generate(
        model,
        [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)],
        max_new_tokens=new_tokens,
        seeds=seed,
        batch_size=2 * ROWS,
    )
    gold = gold_scorer().log_odds(texts_of(model, completions))
    found, place = [], 0
    for number, count in enumerate(counts):
        for i, j in itertools.pairwise(range(place, place + count)):
            one, other = completions[i], completions[j]
            if one.completion_ids != other.completion_ids:
                better = 0.5 * (1.0 + float(np.sign(gold[i] - gold[j])))
                ids = (one.prompt_ids, one.completion_ids, other.completion_ids)
                found.append(Comparison(*ids, better, number >= len(prompts) - held_out))
        place += count
    return found


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """One JSON array per line; whole or not at all."""
    with replaced(path) as file:
        for row in comparisons:
            file.write(json.dumps(row).encode() + b"\n")


def read_comparisons(path: Path) -> list[Comparison]:
    """Undoes :func:`write_comparisons`."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [
        Comparison(tuple(prompt), tuple(first), tuple(second), gold, held_out)
        for prompt, first, second, gold, held_out in rows
    ]


def label_comparisons(
    judge: Judge, tokenizer: Any, comparisons: Sequence[Comparison], folder: Path
) -> dict[str, Any]:
    """Labels all comparisons by a judge; what it has said is kept in `folder` as soon as it has.

    Args:
        judge: who labels.
        tokenizer: turns ids into text.
        comparisons: what is labelled, those that are held out last.
        folder: takes the judgements and, at the end, the labels.

    Returns:
        ``training`` and ``held_out``: the audits of both kinds of comparisons, with the gold labels
        in the place of people's; ``paid`` and ``known``: judgements made now, and found.

    Raises:
        JudgeError: a pair cannot be judged, or the server can be asked no more.
        Interrupted: Ctrl-C or SIGTERM; what was judged is kept.
    """

    def text(ids: Sequence[int]) -> str:
        # As direct rewards decode what they score.
        decoded: str = tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    labels: list[float | None] = []
    found: dict[str, Any] = {"paid": 0, "known": 0}
    for name, held_out in (("training", False), ("held_out", True)):
        asked = [
            Asked(f"comparison {number}", text(c.prompt), text(c.first), text(c.second), c.gold)
            for number, c in enumerate(comparisons)
            if c.held_out == held_out
        ]
        done = label(judge, asked, folder=folder)
        labels += done.labels
        found[name] = audit(judge, done.seen)
        found["paid"] += done.paid
        found["known"] += done.known
    write_json(folder / LABELS, {"first_better": labels})
    return found


def labelled_pairs(
    pairs: Path, labels: Path | None, labeller: Labeller, *, held_out: bool = False
) -> list[Pair]:
    """Comparisons with the labels of one labeller, each the probability that the first is better.

    Args:
        pairs: the folder of the comparisons.
        labels: the folder of the judge's labels; only the labeller ``ai`` needs it.
        labeller: whose labels.
        held_out: those that are for measuring alone, instead of the others.
    """
    rows = read_comparisons(pairs / PAIRS)
    given: Mapping[Labeller, Sequence[float]] = {
        "gold": [row.gold for row in rows],
        "null": [1.0] * len(rows),
    }
    if labeller == "ai":
        assert labels is not None
        own = json.loads((labels / LABELS).read_text(encoding="utf-8"))["first_better"]
    else:
        own = given[labeller]
    return [
        Pair(row.prompt, row.first, row.second, float(value))
        for row, value in zip(rows, own, strict=True)
        if row.held_out == held_out
    ]
