"""Judgements kept as they come, so that nothing is asked, or paid for, twice.

One file for each judge, in the user's cache: a line for each judgement, appended and flushed to
the disk before the next is asked. What a crash cut off is left out and asked again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from tether.errors import JudgeError
from tether.language.judge.judges import Ask, Asked, Judge, Judgement
from tether.language.runtime.cache import cache_folder, unwritable


class Judgements:
    """What one judge has said, by what it was asked.

    Attributes:
        path: of the file.
        paid: judgements that were made since it was opened.
        known: judgements that were found in the file since it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file, if there is one.

        Raises:
            UserError: it cannot be read or written.
        """
        self.path = path
        self.paid = 0
        self.known = 0
        self._found: dict[str, Judgement] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened for appending, so that two labellings side by side overwrite nothing.
            self._file = path.open("ab+")
            self._file.seek(0)
            content = self._file.read()
        except OSError as error:
            raise unwritable(path.parent, error) from error
        for line in content.splitlines():
            self._take(line)
        self._torn = bool(content) and not content.endswith(b"\n")

    def asking(self, ask: Ask) -> Ask:
        """Asks only what is not known, and keeps it."""

        def cached(asked: Sequence[Asked]) -> list[Judgement | JudgeError]:
            keys = [one.key for one in asked]
            new: dict[str, Asked] = {}
            for key, one in zip(keys, asked, strict=True):
                if key not in self._found:
                    new.setdefault(key, one)
            answers = dict(zip(new, ask([*new.values()]), strict=True)) if new else {}
            self._keep({k: v for k, v in answers.items() if isinstance(v, Judgement)})
            self.paid += len(new)
            self.known += len(asked) - len(new)
            return [self._found.get(key) or answers[key] for key in keys]

        return cached

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _keep(self, answers: dict[str, Judgement]) -> None:
        if not answers:
            return
        self._found |= answers
        lines = "".join(
            json.dumps({"asked": key, "value": one.value, "mass": one.mass}) + "\n"
            for key, one in answers.items()
        )
        try:
            self._file.write((b"\n" if self._torn else b"") + lines.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._torn = False

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            value, mass = float(row["value"]), float(row["mass"])
            if math.isfinite(value) and 0.0 <= mass <= 1.0:
                self._found[str(row["asked"])] = Judgement(value, mass)
        except (ValueError, KeyError, TypeError):
            # Cut off by a crash; it is asked again.
            pass


def with_cache(judge: Judge, folder: Path | None = None) -> Judgements:
    """Puts the judge's file before it: in `folder`, or in the user's cache.

    Raises:
        UserError: the file cannot be read or written.
    """
    place = (cache_folder() if folder is None else folder) / "judgements" / f"{judge.digest}.jsonl"
    judgements = Judgements(place)
    judge.ask = judgements.asking(judge.ask)
    return judgements
