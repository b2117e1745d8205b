"""What answers a judge's questions: the protocol that a model here and a server share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tether.errors import JudgeError
from tether.language.judge.questions import Reading

Sides: TypeAlias = "tuple[tuple[str, ...], ...]"
"""Answer words, grouped by what they say."""

LogProbs: TypeAlias = NDArray[np.float64]
"""Log-probability of each group of answer words, (G,)."""


@dataclass
class Cost:
    """What the answers have cost so far.

    Attributes:
        requests: sent to a server, retries included; or readings of a model here.
        retries: requests that had to be sent again.
        prompt_tokens: read, as far as they are known.
        completion_tokens: written.
        seconds: spent reading and waiting.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, float]:
        """The numbers by name."""
        return {**vars(self), "seconds": round(self.seconds, 3)}


class Backend(Protocol):
    """A model that reads and says how probable answer words are.

    Attributes:
        name: of the model, short.
        digest: equal for equal models.
        only_chat: whether it takes no plain text to continue.
        cost: what it has cost so far.
    """

    name: str
    digest: str
    only_chat: bool
    cost: Cost

    def share(self, readings: Sequence[Reading]) -> None:
        """Takes note of what all questions begin with: what these readings have in common."""
        ...

    def answer(self, readings: Sequence[Reading], sides: Sides) -> list[LogProbs | JudgeError]:
        """Log-probability of each group of answer words after each reading.

        Returns:
            For each of the N readings (G,), or why there is none.

        Raises:
            UserError: nothing can be answered at all.
        """
        ...

    def reason(
        self, readings: Sequence[Reading], *, most: int, temperature: float, seeds: Sequence[int]
    ) -> list[str | JudgeError]:
        """What the model says after each reading, at most `most` tokens.

        Raises:
            UserError: nothing can be answered at all.
        """
        ...
