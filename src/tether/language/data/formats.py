"""What a row of data means: eight formats, recognized by their columns and checked row by row.

========================  ============================================================
``messages``              a conversation; every answer of the assistant is learned
``prompt, completion``    one answer
``text``                  a text of its own
``[prompt,] chosen,       two answers; optional ``label``: probability that ``chosen`` is
rejected``                the better (1 if absent, ``"tie"`` is 0.5)
``prompt, completions``   K answers, best first
``prompt, completions,    two answers and the probability that the first is the better, as
label``                   ``tether judge`` writes it
``prompt, completion,     one answer and whether it is good: true, false, or a probability
label``
``prompt``                what to answer
========================  ============================================================

A prompt is a text or a list of messages ``{"role": ..., "content": ...}``; so is an answer, whose
list then holds one message of the assistant. Where ``chosen`` and ``rejected`` are whole
conversations, their prompt is what they have in common, message by message; two plain texts
without a prompt are compared as they are, since letters in common say nothing about where a prompt
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from tether.errors import UserError
from tether.language.data.fields import (
    Text,
    Turn,
    answer_of,
    answers_of,
    bad_field,
    probability_of,
    prompt_of,
    string_of,
    turns_of,
)
from tether.language.data.sources import (
    LONGEST_ROW,
    MOVIE_REVIEWS,
    DataLike,
    Row,
    Source,
    movie_reviews,
    open_source,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which every one of the assistant's is to be learned."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the answer to learn."""

    prompt: Text
    completion: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers; `label` is the probability in [0, 1] that `chosen` is the better."""

    prompt: Text
    chosen: str
    rejected: str
    label: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """K >= 2 answers, best first."""

    prompt: Text
    completions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer; `label` is the probability in [0, 1] that it is good."""

    prompt: Text
    completion: str
    label: float


@dataclass(frozen=True, slots=True)
class Question:
    """What to answer."""

    prompt: Text


Sample: TypeAlias = Conversation | Demonstration | Comparison | Ranked | Judged | Question


class Format(NamedTuple):
    """How rows with certain columns are read."""

    columns: tuple[str, ...]
    read: Callable[[Row], Sample]


@dataclass
class Samples:
    """A data set as samples, to be iterated as often as needed.

    Attributes:
        name: as errors name it.
        format: a key of :data:`FORMATS`.
        skipped: bad rows left out by the last iteration, if that was asked for.
    """

    name: str
    format: str
    source: Source = field(repr=False)
    limit: int | None = None
    skip_bad: bool = False
    skipped: int = 0

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        """Yields (place, sample); place is the file and row, for errors that come later.

        Raises:
            UserError: a bad row, named by place and field, unless bad rows are skipped.
        """
        for row, sample in self.with_rows():
            yield row.place, sample

    def with_rows(self) -> Iterator[tuple[Row, Sample]]:
        """Yields (row, sample): what was read, with its other columns, and what it means.

        Raises:
            UserError: a bad row, named by place and field, unless bad rows are skipped.
        """
        self.skipped = 0
        count = 0
        read = FORMATS[self.format].read
        if self.limit == 0:
            return
        for row in self.source.read():
            try:
                sample = read(row)
            except UserError:
                if not self.skip_bad:
                    raise
                self.skipped += 1
                continue
            yield row, sample
            count += 1
            if count == self.limit:
                return


def read_data(
    data: DataLike,
    accepted: Sequence[str],
    *,
    split: str = "train",
    limit: int | None = None,
    skip_bad: bool = False,
    longest: int = LONGEST_ROW,
) -> Samples:
    """Finds a data set and recognizes its format by its columns.

    Args:
        data: ``"movie-reviews"``, or as for :func:`tether.language.data.sources.open_source`.
        accepted: names of formats (keys of :data:`FORMATS`) that will do, best first.
        split: the part to read, of data that has parts.
        limit: read no more good rows than this.
        skip_bad: count bad rows instead of raising.
        longest: bytes a row of a file may have.

    Returns:
        The samples, not yet read.

    Raises:
        UserError: no such data, or none of the accepted formats; found and expected columns are
            listed.
    """
    if limit is not None and limit < 0:
        raise UserError(f"limit is {limit}; expected 0 or more rows")
    if isinstance(data, str) and data == MOVIE_REVIEWS:
        known = [name for name in accepted if name in ("comparison", "judged", "text")]
        if not known:
            raise UserError(f"{MOVIE_REVIEWS} has no rows of {' or '.join(accepted)}")
        source = movie_reviews(FORMATS[known[0]].columns, split=split)
    else:
        source = open_source(data, split=split, longest=longest)
    format_name = detect(source.columns, accepted, source.name)
    return Samples(source.name, format_name, source, limit, skip_bad)


def detect(columns: Sequence[str], accepted: Sequence[str], name: str) -> str:
    """The first accepted format whose columns are all there.

    Raises:
        UserError: none is; lists the columns found and those expected.
    """
    for candidate in accepted:
        if set(FORMATS[candidate].columns) <= set(columns):
            return candidate
    expected = "; or ".join(", ".join(FORMATS[candidate].columns) for candidate in accepted)
    raise UserError(f"data {name} has the columns {', '.join(columns)}; expected {expected}")


def _conversation(row: Row) -> Sample:
    turns = turns_of(row, "messages")
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise bad_field(
            row, "messages", "no message of the assistant, so there is nothing to learn"
        )
    if answers[0] == 0:
        raise bad_field(row, "messages", "the assistant speaks first; expected a message to answer")
    # What comes after the last answer can teach nothing.
    return Conversation(turns[: answers[-1] + 1])


def _demonstration(row: Row) -> Sample:
    return Demonstration(*_exchange(row))


def _text_alone(row: Row) -> Sample:
    return Demonstration("", string_of(row, "text"))


def _comparison(row: Row) -> Sample:
    label = 1.0 if row.values.get("label") is None else probability_of(row, tie=True)
    if isinstance(row.values.get("chosen"), str):
        prompt = "" if row.values.get("prompt") is None else prompt_of(row)
        chosen, rejected = string_of(row, "chosen"), string_of(row, "rejected")
    else:
        prompt, chosen, rejected = _conversations(row)
    if chosen == rejected:
        raise bad_field(row, "rejected", "equal to chosen, so there is nothing to prefer")
    return Comparison(prompt, chosen, rejected, label)


def _conversations(row: Row) -> tuple[Text, str, str]:
    """Prompt and the two answers where chosen and rejected are lists of messages."""
    given: tuple[Turn, ...] = ()
    if row.values.get("prompt") is not None:
        prompt = prompt_of(row)
        given = (Turn("user", prompt),) if isinstance(prompt, str) else prompt
    wholes = []
    for name in ("chosen", "rejected"):
        turns = turns_of(row, name)
        # Some data sets repeat the prompt at the head of both conversations.
        wholes.append(turns if turns[: len(given)] == given else given + turns)
    chosen, rejected = wholes
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    answers = []
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        rest = turns[common:]
        if len(rest) != 1 or rest[0].role != "assistant":
            roles = ", ".join(turn.role for turn in rest)
            raise bad_field(
                row,
                name,
                f"after what both have in common ({common} messages) come those of {roles}; "
                "expected one message of the assistant",
            )
        answers.append(rest[0].content)
    if common == 0:
        raise bad_field(row, "chosen", "the assistant speaks first; expected a message to answer")
    return chosen[:common], answers[0], answers[1]


def _ranked(row: Row) -> Ranked:
    answers = answers_of(row, "completions")
    prompt = prompt_of(row)
    if isinstance(prompt, str) and not isinstance(row.values["completions"][0], str):
        prompt = (Turn("user", prompt),)
    return Ranked(prompt, answers)


def _labelled(row: Row) -> Sample:
    ranked = _ranked(row)
    answers = ranked.completions
    if len(answers) != 2:
        raise bad_field(
            row, "completions", f"{len(answers)} of them with one label; expected two of them"
        )
    return Comparison(ranked.prompt, answers[0], answers[1], probability_of(row, tie=True))


def _judged(row: Row) -> Sample:
    prompt, completion = _exchange(row)
    return Judged(prompt, completion, probability_of(row, tie=False))


def _question(row: Row) -> Sample:
    prompt = prompt_of(row)
    if not prompt:
        raise bad_field(row, "prompt", "empty")
    return Question(prompt)


FORMATS: Final[Mapping[str, Format]] = {
    "conversation": Format(("messages",), _conversation),
    "comparison": Format(("chosen", "rejected"), _comparison),
    "labelled": Format(("prompt", "completions", "label"), _labelled),
    "ranked": Format(("prompt", "completions"), _ranked),
    "judged": Format(("prompt", "completion", "label"), _judged),
    "demonstration": Format(("prompt", "completion"), _demonstration),
    "text": Format(("text",), _text_alone),
    "question": Format(("prompt",), _question),
}
"""Every format by name."""


def _exchange(row: Row) -> tuple[Text, str]:
    """Prompt and completion; where the answer is a message, so is the prompt."""
    prompt, completion = prompt_of(row), answer_of(row, "completion")
    if isinstance(prompt, str) and not isinstance(row.values["completion"], str):
        prompt = (Turn("user", prompt),)
    return prompt, completion
