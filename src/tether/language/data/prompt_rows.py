"""The prompts of a data set as they were written, and its other columns: what rewards may read."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from tether.language.data.fields import Text, Turn

Messages: TypeAlias = "list[dict[str, str]]"

NO_COLUMNS: Final = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids"})
"""Columns of the data that are not passed on: the convention gives these words a meaning."""


class PromptRows:
    """One row for each prompt of the data, in the data's order.

    Attributes:
        prompts: texts, or the turns of conversations.
        columns: of the other columns that are kept, one value for each prompt; None where a row
            does not have it.
    """

    def __init__(
        self,
        columns: Sequence[str] = (),
        *,
        chat: bool = False,
        keeps: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Begins without rows.

        Args:
            columns: of the data.
            chat: plain prompts are messages of a user.
            keeps: which of the other columns are kept; the rest takes no memory.
        """
        self.prompts: list[Text] = []
        others = [name for name in columns if name not in NO_COLUMNS]
        self.columns: dict[str, list[Any]] = {name: [] for name in others if keeps(name)}
        self._others = others
        self._chat = chat
        self._seal = hashlib.sha256()

    def add(self, prompt: Text, values: Mapping[str, Any]) -> None:
        """Adds the row of the next prompt."""
        if self._chat and isinstance(prompt, str):
            prompt = (Turn("user", prompt),)
        self.prompts.append(prompt)
        for name, column in self.columns.items():
            column.append(values.get(name))
        row = [values.get(name) for name in self._others]
        self._seal.update(json.dumps(row, default=lambda value: type(value).__name__).encode())

    def prompt(self, row: int) -> str | Messages:
        """A prompt as TRL has it: a text, or a list of messages."""
        prompt = self.prompts[row]
        if isinstance(prompt, str):
            return prompt
        return [{"role": turn.role, "content": turn.content} for turn in prompt]

    def values(self, name: str, rows: Sequence[int]) -> list[Any]:
        """What a column has in these rows; lists and dicts may be changed without harm."""
        found = [self.columns[name][row] for row in rows]
        return [copy.deepcopy(v) if isinstance(v, list | dict) else v for v in found]

    @property
    def digest(self) -> str | None:
        """Equal if and only if all other columns are; None: there are none."""
        return self._seal.hexdigest() if self._others else None
