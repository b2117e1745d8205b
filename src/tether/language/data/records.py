"""Records of token ids that check themselves.

Ids come from boundaries: prompt ids and completion ids are made apart and never re-tokenized from
joined text, so the tokens a policy is trained on are those it produces. The end-of-sequence token
is an ordinary last token of the completion.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tether.errors import UserError

Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked to continue.

    Attributes:
        prompt_ids: at least one token (a beginning-of-sequence token will do), because the first
            token of a completion has to be predicted from something.

    Raises:
        UserError: when made of anything else.
    """

    prompt_ids: Ids

    def __post_init__(self) -> None:
        _check_ids(self, "prompt_ids")


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and how it was continued.

    Attributes:
        prompt_ids: at least one token.
        completion_ids: at least one token; with the end-of-sequence token, if that came.
        finished: whether the completion came to its end (a stop token) and was not cut off.
        row: which prompt of the data it answers, from 0, if that is known; not compared.
    """

    prompt_ids: Ids
    completion_ids: Ids
    finished: bool = True
    # Digests of data are made of the representation.
    row: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_ids(self, "prompt_ids")
        _check_ids(self, "completion_ids")


@dataclass(frozen=True, slots=True)
class Example:
    """A demonstration: a prompt and the completion to imitate.

    Attributes:
        prompt_ids: at least one token.
        completion_ids: at least one token, usually ending with the end-of-sequence token.
        loss_mask: which completion tokens to learn; None: all of them. In a conversation the
            user's later turns are part of the completion, but not learned.
    """

    prompt_ids: Ids
    completion_ids: Ids
    loss_mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        _check_ids(self, "prompt_ids")
        _check_ids(self, "completion_ids")
        if self.loss_mask is None:
            return
        mask = tuple(bool(flag) for flag in self.loss_mask)
        object.__setattr__(self, "loss_mask", mask)
        if len(mask) != len(self.completion_ids):
            raise UserError(
                f"loss_mask has {len(mask)} entries for {len(self.completion_ids)} completion_ids; "
                "expected one for each"
            )
        if not any(mask):
            raise UserError("loss_mask masks every token; expected at least one to learn from")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, and which one is better.

    Attributes:
        prompt_ids: at least one token.
        chosen_ids: the first completion.
        rejected_ids: the second one; not the same.
        label: probability that `chosen_ids` is better, in [0, 1]; 0.5 is a tie.
    """

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    label: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            _check_ids(self, name)
        if self.chosen_ids == self.rejected_ids:
            raise UserError(
                "chosen_ids and rejected_ids are equal; expected two different completions"
            )
        # Written so that NaN fails too.
        if not 0.0 <= self.label <= 1.0:
            raise UserError(
                f"label is {self.label}; expected the probability in [0, 1] that chosen_ids is "
                "better"
            )

    def as_completions(self) -> tuple[Completion, Completion]:
        """Chosen, rejected."""
        return (
            Completion(self.prompt_ids, self.chosen_ids),
            Completion(self.prompt_ids, self.rejected_ids),
        )


@dataclass(frozen=True, slots=True)
class Ranking:
    """K completions of one prompt, best first.

    Attributes:
        prompt_ids: at least one token.
        completions: ids of at least two completions, all different.
    """

    prompt_ids: Ids
    completions: tuple[Ids, ...]

    def __post_init__(self) -> None:
        _check_ids(self, "prompt_ids")
        completions = tuple(_ids(c, f"completions[{i}]") for i, c in enumerate(self.completions))
        object.__setattr__(self, "completions", completions)
        if len(completions) < 2:
            raise UserError(f"completions holds {len(completions)}; expected at least 2 to rank")
        if len(set(completions)) < len(completions):
            raise UserError("completions holds the same one twice; expected different completions")

    def as_completions(self) -> tuple[Completion, ...]:
        """Best first."""
        return tuple(Completion(self.prompt_ids, ids) for ids in self.completions)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One completion, and whether it is good.

    Attributes:
        prompt_ids: at least one token.
        completion_ids: at least one token.
        label: probability that the completion is good, in [0, 1].
    """

    prompt_ids: Ids
    completion_ids: Ids
    label: float

    def __post_init__(self) -> None:
        _check_ids(self, "prompt_ids")
        _check_ids(self, "completion_ids")
        # Written so that NaN fails too.
        if not 0.0 <= self.label <= 1.0:
            raise UserError(
                f"label is {self.label}; expected the probability in [0, 1] that completion_ids "
                "are good"
            )

    def as_completions(self) -> tuple[Completion]:
        """The one that was judged."""
        return (Completion(self.prompt_ids, self.completion_ids),)


Record: TypeAlias = Prompt | Completion | Example | Pair | Ranking | Judgement


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the place (a file and line, a row) before what a record made inside complains of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def fields_of(record: Record) -> Iterator[tuple[str, Ids]]:
    """Names and ids of a record's parts, the prompt first."""
    yield "prompt_ids", record.prompt_ids
    if isinstance(record, Pair):
        yield "chosen_ids", record.chosen_ids
        yield "rejected_ids", record.rejected_ids
    elif isinstance(record, Ranking):
        for i, ids in enumerate(record.completions):
            yield f"completions[{i}]", ids
    elif not isinstance(record, Prompt):
        yield "completion_ids", record.completion_ids


def _check_ids(record: Any, field: str) -> None:
    object.__setattr__(record, field, _ids(getattr(record, field), field))


def _ids(values: Any, field: str) -> Ids:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise UserError(f"{field} is a {type(values).__name__}; expected a list of token ids")
    ids = tuple(values)
    if not ids:
        raise UserError(f"{field} is empty; expected at least one token id")
    # The common case is one pass in C; what is left are NumPy integers, or mistakes.
    if set(map(type, ids)) != {int}:
        ids = tuple(_integer(value, field) for value in ids)
    if min(ids) < 0:
        raise UserError(f"{field} holds the id {min(ids)}; expected ids of at least 0")
    return ids


def _integer(value: Any, field: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{field} holds {value!r:.40}; expected integers") from None
