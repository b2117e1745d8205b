"""Judges: a question, a backend that answers it, and what becomes of its probabilities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tether.errors import JudgeError, UserError
from tether.language.data.fields import Text, Turn
from tether.language.judge.backends import Backend, LogProbs
from tether.language.judge.questions import (
    Attribute,
    Layout,
    Mode,
    Reading,
    as_text,
    fill,
    filled_shot,
)

_LOWEST: Final = -200.0
"""A log-probability below which rounding has eaten everything."""

_PROBES: Final = ("The", "7 a", '"', "A b")
_END: Final = "\n\n"


class Asked(NamedTuple):
    """What is judged: a completion of a prompt, or two in the order in which they are shown."""

    prompt: Text
    completions: tuple[str, ...]

    @property
    def key(self) -> str:
        """32 hexadecimal digits, made of the content."""
        prompt: Any = self.prompt
        if not isinstance(prompt, str):
            prompt = [[turn.role, turn.content] for turn in prompt]
        content = json.dumps([prompt, *self.completions], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


class Judgement(NamedTuple):
    """A verdict.

    Attributes:
        value: log-odds of yes, or of the first text; or the expected rating.
        mass: probability of all answer words together, in [0, 1].
    """

    value: float
    mass: float


class Ask(Protocol):
    """Anything that judges what it is asked, one judgement or failure for each."""

    def __call__(self, asked: Sequence[Asked], /) -> list[Judgement | JudgeError]:
        """The judgements, in order."""
        ...


@dataclass(frozen=True)
class Style:
    """How a question is put.

    Attributes:
        shots: solved examples that are shown.
        detailed: the long preamble instead of the short one.
        principles: one of the attribute's principles before each question, chosen by its content.
        reasons: how often the judge gives reasons before it answers, whose verdicts are averaged;
            0: never.
        reason_tokens: most tokens of a reason.
        reason_temperature: of sampled reasons.
        layout: how it is laid out; None: as the attribute's file says.
        max_words: words of each text that are read; None: all.
        seed: decides the reasons.
    """

    shots: int = 0
    detailed: bool = False
    principles: bool = False
    reasons: int = 0
    reason_tokens: int = 96
    reason_temperature: float = 1.0
    layout: Layout | None = None
    max_words: int | None = None
    seed: int = 0


class Judge:
    """An attribute, a way to ask for it, and a model that answers.

    Attributes:
        name: of the annotator that its labels have.
        digest: equal for judges that judge alike.
        mode: pointwise, pairwise or rating.
        temperature: differences of scores, or log-odds, are divided by it.
        backend: the model.
        ask: judges what it is asked; a cache may stand before it.
    """

    def __init__(
        self,
        attribute: Attribute,
        mode: Mode,
        backend: Backend,
        style: Style | None = None,
        *,
        temperature: float | None = None,
        name: str | None = None,
    ) -> None:
        """Checks that the attribute can be asked for in this way.

        Raises:
            UserError: the attribute has no such question, too few examples or no principles.
        """
        self.mode = mode
        self.backend = backend
        self.style = style = style or Style()
        self.check(attribute, mode, style)
        self._question = question = attribute.question(mode)
        self._layout: Layout = style.layout or question.template
        if backend.only_chat:
            self._layout = "chat"
        self._sides = question.answers(mode)
        if self._layout == "chat":
            self._sides = tuple(_chat_words(side) for side in self._sides)
        self._shots = question.shots[: style.shots]
        self.temperature = question.temperature if temperature is None else temperature
        kind = f"{mode}-{style.shots}" + "-detailed" * style.detailed
        kind += "-principles" * style.principles + "-cot" * bool(style.reasons)
        self.name = name or f"{backend.name}/{attribute.name}/{kind}"
        self.digest = self._digest(backend)
        self.ask: Ask = self._ask
        backend.share([self._reading(self._probe(text), "") for text in _PROBES])

    @staticmethod
    def check(attribute: Attribute, mode: Mode, style: Style) -> None:
        """Checks that an attribute can be asked for in this way, before a model is loaded.

        Raises:
            UserError: it has no such question, too few examples, or no principles.
        """
        question = attribute.question(mode)
        if style.shots > len(question.shots):
            raise UserError(
                f"shots is {style.shots}, and the attribute {attribute.name!r} has "
                f"{len(question.shots)} solved examples for mode {mode}; expected at most so many"
            )
        for name in ("principles", "detailed"):
            if getattr(style, name) and not getattr(question, name):
                raise UserError(
                    f"{name} is asked for, and the attribute {attribute.name!r} has none for mode "
                    f"{mode}; leave it out, or add {name} to the attribute's file"
                )

    def score(self, prompts: Sequence[Text], completions: Sequence[str]) -> NDArray[np.float64]:
        """How much of the attribute each completion has: log-odds, or the expected rating; (N,).

        Raises:
            JudgeError: one of them could not be judged; the message says which.
            UserError: the judge compares pairs.
        """
        if self.mode == "pairwise":
            raise UserError(
                "mode is pairwise, which compares two texts and scores none; choose pointwise or "
                "rating"
            )
        asked = [Asked(p, (c,)) for p, c in zip(prompts, completions, strict=True)]
        return np.array([_sure(found, row).value for row, found in enumerate(self.ask(asked))])

    def compare(
        self, prompts: Sequence[Text], firsts: Sequence[str], seconds: Sequence[str]
    ) -> NDArray[np.float64]:
        """Probability that each first completion is better than the second; (N,).

        A pairwise judge reads both orders, and their probabilities are averaged; for others it is
        sigma((score of the first - score of the second) / temperature).

        Raises:
            JudgeError: a pair could not be judged; the message says which.
        """
        rows = list(zip(prompts, firsts, seconds, strict=True))
        asked = [one for row in rows for one in self.both(*row)]
        found = [_sure(one, place // 2) for place, one in enumerate(self.ask(asked))]
        pairs = zip(found[::2], found[1::2], strict=True)
        return np.array([self.probability(*pair) for pair in pairs])

    def both(self, prompt: Text, first: str, second: str) -> tuple[Asked, Asked]:
        """What is asked of a pair: both texts, or both orders."""
        if self.mode == "pairwise":
            return Asked(prompt, (first, second)), Asked(prompt, (second, first))
        return Asked(prompt, (first,)), Asked(prompt, (second,))

    def probability(self, one: Judgement, other: Judgement) -> float:
        """Probability that the first of two is better, from what :meth:`both` asked."""
        if self.mode == "pairwise":
            p, q = (_sigmoid(j.value / self.temperature) for j in (one, other))
            return 0.5 * (p + 1.0 - q)
        return _sigmoid((one.value - other.value) / self.temperature)

    def _ask(self, asked: Sequence[Asked]) -> list[Judgement | JudgeError]:
        if not self.style.reasons:
            readings = [self._reading(one, "") for one in asked]
            return [self._judgement([one]) for one in self.backend.answer(readings, self._sides)]
        return self._ask_with_reasons(asked)

    def _ask_with_reasons(self, asked: Sequence[Asked]) -> list[Judgement | JudgeError]:
        style = self.style
        repeated = [(row, sample) for row in range(len(asked)) for sample in range(style.reasons)]
        reasons = self.backend.reason(
            [self._reasoning(asked[row]) for row, _ in repeated],
            most=style.reason_tokens,
            temperature=style.reason_temperature,
            seeds=[_seed(asked[row].key, style.seed, sample) for row, sample in repeated],
        )
        votes: list[list[LogProbs | JudgeError]] = [[] for _ in asked]
        told: list[tuple[int, Reading]] = []
        for (row, _), reason in zip(repeated, reasons, strict=True):
            if isinstance(reason, JudgeError):
                votes[row].append(reason)
            else:
                told.append((row, self._reading(asked[row], _one_paragraph(reason))))
        answers = self.backend.answer([reading for _, reading in told], self._sides)
        for (row, _), answer in zip(told, answers, strict=True):
            votes[row].append(answer)
        return [self._judgement(some) for some in votes]

    def _judgement(self, votes: Sequence[LogProbs | JudgeError]) -> Judgement | JudgeError:
        """What one vote says, or the mean probability of several."""
        failed = next((vote for vote in votes if isinstance(vote, JudgeError)), None)
        if failed is not None:
            return failed
        logs = np.maximum(
            np.stack([vote for vote in votes if not isinstance(vote, JudgeError)]), _LOWEST
        )
        masses = np.exp(np.logaddexp.reduce(logs, axis=1))
        shares = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
        mean = np.logaddexp.reduce(shares, axis=0) - np.log(len(shares))
        mass = float(np.minimum(masses.mean(), 1.0))
        if self.mode == "rating":
            return Judgement(float(np.exp(mean) @ np.arange(1, len(mean) + 1)), mass)
        return Judgement(float(mean[0] - mean[1]), mass)

    def _reading(self, asked: Asked, reason: str) -> Reading:
        question, chat = self._question, self._layout == "chat"
        head = self._head(asked)
        if not chat:
            told = f"{question.reason_cue} {reason}\n" if self.style.reasons else ""
            return Reading((), f"{head}{told}{question.cue}")
        if not self.style.reasons:
            return Reading((Turn("user", head + question.cue),))
        turns = self._reasoning(asked).turns
        return Reading((*turns, Turn("assistant", reason), Turn("user", question.cue)))

    def _reasoning(self, asked: Asked) -> Reading:
        question, head = self._question, self._head(asked)
        if self._layout == "chat":
            return Reading((Turn("user", f"{head}{question.reason_cue}"),))
        return Reading((), f"{head}{question.reason_cue}")

    def _head(self, asked: Asked) -> str:
        """Preamble, examples, a principle, and the question itself."""
        question = self._question
        parts = [question.detailed.lstrip("\n") if self.style.detailed else question.preamble]
        for shot in self._shots:
            solved = filled_shot(question, self.mode, shot)
            shown = self.style.reasons and solved["reason"]
            why = f"{question.reason_cue} {solved['reason']}\n" if shown else ""
            parts.append(f"{solved['question']}{why}{question.cue}{solved['word']}{_END}")
        if self.style.principles:
            chosen = int(asked.key[:8], 16) % len(question.principles)
            parts.append(f"{question.principles[chosen]}{_END}")
        parts.append(fill(question.question, self._values(asked)))
        return "".join(parts)

    def _values(self, asked: Asked) -> dict[str, str]:
        names = ("first", "second") if self.mode == "pairwise" else ("completion",)
        texts = [self._shortened(text) for text in asked.completions]
        return {"prompt": as_text(asked.prompt), **dict(zip(names, texts, strict=True))}

    def _shortened(self, text: str) -> str:
        most = self.style.max_words
        if most is None:
            return text
        lead = text[: len(text) - len(text.lstrip())]
        words = text.split(maxsplit=most)
        return text if len(words) <= most else lead + " ".join(words[:most])

    def _probe(self, text: str) -> Asked:
        return Asked(text, (text, text) if self.mode == "pairwise" else (text,))

    def _digest(self, backend: Backend) -> str:
        question = self._question.dump()
        question.pop("temperature")
        content = [backend.digest, self.mode, self._layout, question, vars(self.style), self._sides]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _sure(found: Judgement | JudgeError, row: int) -> Judgement:
    if isinstance(found, JudgeError):
        raise JudgeError(f"row {row}: {found}") from found
    return found


def _chat_words(side: Sequence[str]) -> tuple[str, ...]:
    """Answers begin without a space in a conversation, and often with a capital."""
    words = [word.strip() for word in side]
    return tuple(dict.fromkeys([*words, *(word[:1].upper() + word[1:] for word in words)]))


def _one_paragraph(text: str) -> str:
    return " ".join(text.split(_END, maxsplit=1)[0].split())


def _seed(key: str, seed: int, sample: int) -> int:
    content = f"{key} {seed} {sample}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big")


def _sigmoid(x: float) -> float:
    return float(0.5 * (1.0 + np.tanh(0.5 * x)))
