"""A judge in the loop: what it thinks of each completion is the reward, ``judge:NAME``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tether.errors import UserError
from tether.language.data.fields import Text, Turn
from tether.language.judge.judgements import with_cache
from tether.language.judge.judges import Judge
from tether.language.judge.opening import (
    is_judge_name,
    judge_settings,
    lasting_judge_name,
    open_settings,
)
from tether.language.judge.questions import open_attribute
from tether.language.judge.server import Server, is_url
from tether.language.models.files import find_folder
from tether.language.models.from_run import is_run

__all__ = ["JudgeReward", "is_judge_name", "lasting_judge_name"]

EXPECTED: Final = "judge:positive, judge:FILE.toml, judge:positive@MODEL or judge:positive,shots=0"
"""How a judge is named as a reward."""


class JudgeReward:
    """A judge by name as a reward function with TRL's convention.

    The judge scores: log-odds of yes, or the expected rating. The model is loaded when it is first
    asked, or by :meth:`open`. What a server has said is kept and not paid for twice.

    Attributes:
        name: ``judge:NAME``.
    """

    def __init__(self, name: str) -> None:
        """Checks what can be checked without a model.

        Raises:
            UserError: no such judge or attribute, or one that compares pairs.
        """
        self.name = name
        self._settings = judge_settings(name)
        self._judge: Judge | None = None
        if self._settings.mode == "pairwise":
            raise UserError(
                f"the reward {name} is a judge of mode pairwise, which scores no single text; "
                "expected mode pointwise or rating"
            )
        open_attribute(self._settings.attribute).question(self._settings.mode)

    def open(self) -> Judge:
        """The judge; its model is loaded once.

        Raises:
            UserError: it cannot be opened.
        """
        if self._judge is None:
            self._judge = open_settings(self._settings)
            if isinstance(self._judge.backend, Server):
                with_cache(self._judge)
        return self._judge

    def digest(self) -> str:
        """Equal for judges that judge alike."""
        return self.open().digest

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """One score for each completion.

        Raises:
            JudgeError: one of them could not be judged.
        """
        scores = self.open().score([_text(p) for p in prompts], [_answer(c) for c in completions])
        return [float(score) for score in scores]


def check_judge(name: str) -> None:
    """Checks that a judge of single texts can be opened, without loading its model.

    Raises:
        UserError: there is no such judge or model, or it compares pairs.
    """
    JudgeReward(name)
    model = judge_settings(name).model
    if not is_url(model) and not is_run(model):
        find_folder(model)


def _text(prompt: str | Sequence[Mapping[str, str]]) -> Text:
    if isinstance(prompt, str):
        return prompt
    return tuple(Turn(message["role"], message["content"]) for message in prompt)


def _answer(completion: str | Sequence[Mapping[str, str]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
