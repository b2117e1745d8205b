"""From the samples of a data set to the token records that a method learns from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence

from tether.errors import UserError
from tether.language.data.fields import Text
from tether.language.data.formats import (
    Comparison,
    Conversation,
    Demonstration,
    Judged,
    Ranked,
    Sample,
    Samples,
)
from tether.language.data.prompt_rows import PromptRows
from tether.language.data.templates import Template
from tether.language.data.tokens import (
    Example,
    Judgement,
    Pair,
    Prompt,
    Ranking,
    Record,
    Truncation,
    located,
    truncate,
)

TokenRecord = Record


def tokenize(
    samples: Samples,
    template: Template,
    *,
    prompts_only: bool = False,
    pairs_only: bool = False,
    rows: PromptRows | None = None,
) -> list[TokenRecord]:
    """Every sample as token ids, made from boundaries.

    Args:
        samples: of any format.
        template: of the tokenizer that the model was trained with.
        prompts_only: keep only what is to be answered.
        pairs_only: make all K (K - 1) / 2 pairs of a ranking.
        rows: gets a row for each prompt, with the other columns of the data.

    Raises:
        UserError: a bad row, or a text the template cannot take; names file and row.
    """
    records: list[TokenRecord] = []
    for row, sample in samples.with_rows():
        with located(row.place):
            if prompts_only:
                prompt = _prompt(sample)
                records.append(Prompt(tuple(template.prompt_ids(prompt))))
                if rows is not None:
                    rows.add(prompt, row.values)
                continue
            record = _record(sample, template)
            if pairs_only and isinstance(record, Ranking):
                best_first = itertools.combinations(record.completions, 2)
                records += [Pair(record.prompt_ids, *pair) for pair in best_first]
            else:
                records.append(record)
    return records


def fit(
    records: Sequence[TokenRecord],
    name: str,
    *,
    context: int,
    max_prompt: int | None = None,
    max_completion: int | None = None,
) -> tuple[list[TokenRecord], Truncation]:
    """Cuts records to fit; see :func:`tether.language.data.tokens.truncate`.

    Raises:
        UserError: nothing is left of the data `name`.
    """
    kept, account = truncate(
        records, context=context, max_prompt=max_prompt, max_completion=max_completion
    )
    if not kept:
        reason = f"; {account}" if account else ""
        raise UserError(f"nothing is left of the data {name} to learn from{reason}")
    return kept, account


def digest(records: Iterable[TokenRecord]) -> str:
    """SHA-256 over all token ids and labels: equal if and only if the data are."""
    seal = hashlib.sha256()
    for record in records:
        seal.update(repr(record).encode())
    return seal.hexdigest()


def _record(sample: Sample, template: Template) -> TokenRecord:
    if isinstance(sample, Conversation):
        prompt_ids, completion_ids, learned = template.conversation(sample.turns)
        mask = None if all(learned) else tuple(learned)
        return Example(tuple(prompt_ids), tuple(completion_ids), mask)
    prompt = tuple(template.prompt_ids(sample.prompt))

    def answer(text: str) -> tuple[int, ...]:
        return tuple(template.completion_ids(sample.prompt, text))

    if isinstance(sample, Demonstration):
        return Example(prompt, answer(sample.completion))
    if isinstance(sample, Comparison):
        return Pair(prompt, answer(sample.chosen), answer(sample.rejected), sample.label)
    if isinstance(sample, Ranked):
        return Ranking(prompt, tuple(answer(text) for text in sample.completions))
    if isinstance(sample, Judged):
        return Judgement(prompt, answer(sample.completion), sample.label)
    return Prompt(prompt)


def _prompt(sample: Sample) -> Text:
    if isinstance(sample, Conversation):
        # Conversations end with the assistant's last answer.
        return sample.turns[:-1]
    return sample.prompt
