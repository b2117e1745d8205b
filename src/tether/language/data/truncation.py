"""Records against the limits of a model: checked, or cut to fit with an account of what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from tether.errors import UserError
from tether.language.data.records import (
    Completion,
    Example,
    Ids,
    Judgement,
    Pair,
    Prompt,
    Ranking,
    Record,
    fields_of,
)

R = TypeVar("R", bound=Record)


def check_records(
    records: Sequence[Record], *, vocabulary: int, context: int, source: str = "data"
) -> None:
    """Checks records against the model that shall read them.

    Args:
        records: any of this module's.
        vocabulary: rows of the model's embedding; ids must be below.
        context: most tokens of prompt and completion together. A bare prompt must be at least
            one token shorter.
        source: what to call them in errors, which name ``source[index].field``.

    Raises:
        UserError: no records, an id outside the vocabulary, or a record that does not fit.
    """
    if not records:
        raise UserError(f"{source} is empty; expected at least one record")
    for index, record in enumerate(records):
        prompt = len(record.prompt_ids)
        for field, ids in fields_of(record):
            if max(ids) >= vocabulary:
                raise UserError(
                    f"{source}[{index}].{field} holds the id {max(ids)}; expected less than "
                    f"{vocabulary}, the model's vocabulary: tokenize with the model's tokenizer"
                )
            length = prompt + (1 if field == "prompt_ids" else len(ids))
            if length > context:
                raise UserError(
                    f"{source}[{index}].{field}: prompt and completion take {length} tokens; the "
                    f"model's context is {context}: truncate or leave it out"
                )


@dataclass(frozen=True, slots=True)
class Truncation:
    """What :func:`truncate` cut.

    Attributes:
        records: how many there were.
        prompts: how many of their prompts lost their beginning.
        completions: how many completions lost their end, and with it the end-of-sequence token.
        dropped: how many records were left out because cutting took away what they say.
        tokens: how many tokens were cut or left out.
    """

    records: int = 0
    prompts: int = 0
    completions: int = 0
    dropped: int = 0
    tokens: int = 0

    def __bool__(self) -> bool:
        """Whether anything was cut."""
        return self.tokens > 0

    def __str__(self) -> str:
        """One line for the user."""
        return (
            f"of {self.records:,} records, {self.prompts:,} prompts and {self.completions:,} "
            f"completions were cut and {self.dropped:,} records dropped ({self.tokens:,} tokens) "
            "to fit the model's context and --max-length, --max-prompt and --max-completion"
        )


def truncate(
    records: Sequence[R],
    *,
    context: int,
    max_prompt: int | None = None,
    max_completion: int | None = None,
) -> tuple[list[R], Truncation]:
    """Makes records fit, and says what that cost.

    Prompts lose their beginning, which matters least to what follows; completions lose their end.
    After each is cut to its own limit, what is still too long loses prompt down to half of the
    context, and then completion. A pair or ranking whose completions become equal, and an example
    left with nothing to learn, is dropped.

    Args:
        records: any of this module's.
        context: most tokens of prompt and completion together, at least 2.
        max_prompt: most tokens of a prompt, at least 1; None: no own limit.
        max_completion: most tokens of a completion, at least 1; None: no own limit.

    Returns:
        The records that are left, in order, and the account.

    Raises:
        UserError: a limit is too small.
    """
    limits: dict[str, tuple[int | None, int]] = {
        "context": (context, 2),
        "max_prompt": (max_prompt, 1),
        "max_completion": (max_completion, 1),
    }
    for name, (limit, least) in limits.items():
        if limit is not None and limit < least:
            raise UserError(f"{name} is {limit}; expected at least {least}")
    kept: list[R] = []
    prompts = completions = dropped = tokens = 0
    for record in records:
        parts = dict(fields_of(record))
        before = parts.pop("prompt_ids")
        cut = {field: ids[:max_completion] for field, ids in parts.items()}
        longest = max((len(ids) for ids in cut.values()), default=1)
        available = max(context - longest, context // 2)
        prompt = before[-min(available, max_prompt or available) :]
        cut = {field: ids[: context - len(prompt)] for field, ids in cut.items()}
        fitted = _replaced(record, prompt, cut)
        lost = sum(map(len, parts.values()))
        if fitted is None:
            dropped += 1
            tokens += len(before) + lost
            continue
        kept.append(cast(R, fitted))
        prompts += len(prompt) < len(before)
        completions += sum(len(cut[field]) < len(ids) for field, ids in parts.items())
        tokens += len(before) - len(prompt) + lost - sum(map(len, cut.values()))
    return kept, Truncation(len(records), prompts, completions, dropped, tokens)


def _replaced(record: Record, prompt: Ids, cut: dict[str, Ids]) -> Record | None:
    """The record with shorter ids, or None if it no longer says anything."""
    try:
        if isinstance(record, Prompt):
            return Prompt(prompt)
        if isinstance(record, Pair):
            return Pair(prompt, cut["chosen_ids"], cut["rejected_ids"], record.label)
        if isinstance(record, Ranking):
            return Ranking(prompt, tuple(cut.values()))
        ids = cut["completion_ids"]
        if isinstance(record, Example):
            mask = record.loss_mask
            return Example(prompt, ids, None if mask is None else mask[: len(ids)])
        if isinstance(record, Judgement):
            return Judgement(prompt, ids, record.label)
        return Completion(prompt, ids, record.finished and ids == record.completion_ids)
    except UserError:
        return None
