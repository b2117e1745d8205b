"""What a judge is asked: an attribute's file, checked, and its templates, filled in one pass.

A template is a text with fields in braces, such as ``{completion}``; ``{{`` and ``}}`` stand for
braces of its own. Fields are filled in one pass over the template and what is filled in is never
looked at again, so braces and template syntax inside a text are harmless.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from tether.errors import UserError
from tether.language.data.fields import Text, Turn
from tether.language.runtime.paths import expanded, is_file, short
from tether.learning.config import Config

Mode = Literal["pointwise", "pairwise", "rating"]
Layout = Literal["plain", "chat"]

ATTRIBUTES: Final = ("positive", "harmless", "helpful")
"""Attributes whose files come with the package."""

FOLDER: Final = Path(__file__).parent / "attributes"

_FIELD: Final = re.compile(r"\{\{|\}\}|\{(\w*)\}|[{}]")
_TOP_RATING: Final = 100


@dataclass(frozen=True)
class Reading:
    """What a judge reads before it answers.

    Attributes:
        turns: a conversation, which the judge answers; empty: it continues `text`.
        text: the text to continue.
    """

    turns: tuple[Turn, ...]
    text: str = ""


class Shot(Config):
    """A solved example."""

    prompt: str = ""
    """What was asked."""
    completion: str = ""
    """The text that is judged by itself."""
    first: str = ""
    """The first of two texts."""
    second: str = ""
    """The second of two texts."""
    answer: str
    """yes or no; first or second; or a rating."""
    reason: str = ""
    """Why, shown where the judge gives reasons too."""


class Question(Config):
    """How one mode asks for an attribute."""

    template: Layout = "plain"
    """plain: the judge continues a text; chat: it answers a message."""
    preamble: str = ""
    """What comes first."""
    detailed: str = ""
    """A longer text in the preamble's place, which explains the attribute."""
    principles: tuple[str, ...] = ()
    """Principles, of which one is put before each question."""
    question: str
    """What is judged, with fields in braces."""
    cue: str
    """What the answer follows."""
    reason_cue: str = "Explanation:"
    """What the reasons follow, where the judge gives them first."""
    yes: tuple[str, ...] = ()
    """Pointwise: the words that say yes."""
    no: tuple[str, ...] = ()
    """Pointwise: the words that say no."""
    first: tuple[str, ...] = ()
    """Pairwise: the words that choose the first text."""
    second: tuple[str, ...] = ()
    """Pairwise: the words that choose the second text."""
    best: int = Field(10, ge=2, le=_TOP_RATING)
    """Rating: the highest; 1 is the lowest."""
    space: str = ""
    """Rating: what stands before the number."""
    temperature: float = Field(1.0, gt=0)
    """Log-odds are divided by it before they become probabilities."""
    shots: tuple[Shot, ...] = ()
    """Solved examples, the first K of which are shown."""

    @field_validator("yes", "no", "first", "second")
    @classmethod
    def _words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.strip() for word in words):
            raise ValueError("an answer word is empty")
        return words

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for one, other in ((self.yes, self.no), (self.first, self.second)):
            both = [word.strip() for word in (*one, *other)]
            twice = next((word for word in both if both.count(word) > 1), None)
            if twice is not None:
                raise ValueError(f"the answer word {twice!r} is given twice; expected each once")
        return self

    def answers(self, mode: Mode) -> tuple[tuple[str, ...], ...]:
        """The answer words, side by side: those for and those against, or each rating's."""
        if mode == "rating":
            return tuple((f"{self.space}{number}",) for number in range(1, self.best + 1))
        return (self.yes, self.no) if mode == "pointwise" else (self.first, self.second)


class Attribute(Config):
    """What is judged, and how each mode asks for it."""

    name: str
    """Names the attribute in judges' names."""
    description: str = ""
    """One line for people."""
    pointwise: Question | None = None
    """Each text by itself, yes or no."""
    pairwise: Question | None = None
    """Which of two texts is better."""
    rating: Question | None = None
    """Each text by itself, as a number from 1."""

    def question(self, mode: Mode) -> Question:
        """The question of a mode.

        Raises:
            UserError: the attribute has none.
        """
        found: Question | None = getattr(self, mode)
        if found is None:
            has = [name for name in FIELDS if getattr(self, name) is not None]
            raise UserError(
                f"mode is {mode!r}, and the attribute {self.name!r} has no table [{mode}]; it has "
                f"{', '.join(has)}"
            )
        return found


FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "pointwise": ("prompt", "completion"),
    "pairwise": ("prompt", "first", "second"),
    "rating": ("prompt", "completion"),
}
"""The fields that each mode's question may have; all but ``prompt`` have to be there."""

_SIDES: Final[Mapping[str, tuple[str, ...]]] = {
    "pointwise": ("yes", "no"),
    "pairwise": ("first", "second"),
    "rating": (),
}


def open_attribute(name: str | Path) -> Attribute:
    """An attribute that comes with the package, or one in a file of the user's.

    Raises:
        UserError: no such attribute, or a file that cannot be used: unknown keys, unknown or
            missing fields, no answer words, a solved example without an answer.
    """
    path = FOLDER / f"{name}.toml" if str(name) in ATTRIBUTES else expanded(name)
    if not is_file(path):
        close = difflib.get_close_matches(str(name), ATTRIBUTES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(ATTRIBUTES)}"
        raise UserError(f"attribute is {short(name)!r}, which is no file and no attribute; {hint}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read attribute {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"attribute {path} is not valid TOML: {error}") from error
    attribute = Attribute.load(table, source=path)
    asked = [mode for mode in FIELDS if getattr(attribute, mode) is not None]
    if not asked:
        raise UserError(f"attribute {path} has no questions; expected a table such as [pointwise]")
    for mode in asked:
        _check(getattr(attribute, mode), mode, f"attribute {path}, [{mode}]")
    return attribute


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled in, in one pass.

    Raises:
        KeyError: a field that has no value; templates of checked attributes have none.
    """

    def filled(match: re.Match[str]) -> str:
        found = match[0]
        if found in ("{{", "}}"):
            return found[0]
        return values[match[1]] if match[1] is not None else found

    return _FIELD.sub(filled, template)


def fields_of(template: str, where: str, known: Sequence[str]) -> set[str]:
    """The fields of a template.

    Raises:
        UserError: a field that is not known, or a brace that opens or closes nothing.
    """
    found: set[str] = set()
    for match in _FIELD.finditer(template):
        if match[0] in ("{{", "}}"):
            continue
        if match[1] is None:
            raise UserError(
                f"{where} has a single {match[0]!r}; expected a field such as {{{known[-1]}}}, or "
                f"{match[0] * 2!r} for the character itself"
            )
        if match[1] not in known:
            expected = ", ".join(f"{{{name}}}" for name in known)
            raise UserError(f"{where} has the field {{{match[1]}}}; expected {expected}")
        found.add(match[1])
    return found


def as_text(prompt: Text) -> str:
    """A prompt as a text; a conversation as a transcript that the assistant goes on with."""
    if isinstance(prompt, str):
        return prompt
    names = {"user": "Human", "assistant": "Assistant"}
    lines = [f"{names.get(t.role, t.role.capitalize())}: {t.content}" for t in prompt]
    return "\n\n".join(lines)


def _check(question: Question, mode: str, where: str) -> None:
    known = FIELDS[mode]
    has = fields_of(question.question, f"{where}: question", known)
    missing = [name for name in known if name != "prompt" and name not in has]
    if missing:
        raise UserError(f"{where}: question lacks the field {{{missing[0]}}}")
    for side in _SIDES[mode]:
        if not getattr(question, side):
            raise UserError(f"{where} has no answer words {side}; give {side} = [...]")
    allowed = _SIDES[mode] or tuple(str(n) for n in range(1, question.best + 1))
    for number, shot in enumerate(question.shots, start=1):
        if shot.answer not in allowed:
            raise UserError(
                f"{where}: shot {number} has the answer {shot.answer!r}; expected "
                f"{' or '.join(allowed)}"
            )
        empty = [name for name in known if name != "prompt" and not getattr(shot, name)]
        if empty:
            raise UserError(f"{where}: shot {number} has no {empty[0]}")


def filled_shot(question: Question, mode: Mode, shot: Shot) -> dict[str, Any]:
    """An example's question, reason and answer word."""
    values = {name: str(getattr(shot, name)) for name in FIELDS[mode]}
    word = (
        f"{question.space}{shot.answer}" if mode == "rating" else getattr(question, shot.answer)[0]
    )
    return {"question": fill(question.question, values), "reason": shot.reason, "word": word}
