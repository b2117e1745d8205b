"""Completions for people to look at, kept beside a run's numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tether.errors import UserError
from tether.language.data.tokens import Completion
from tether.learning.callbacks import BaseCallback, RunView
from tether.learning.learner import Learner, Metrics
from tether.learning.output.samples import SAMPLES_FILE, read_samples

__all__ = ["SampleTable", "SampledCompletion", "read_samples"]


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """A completion for people to look at.

    Attributes:
        completion: prompt and completion.
        score: what the scorer gave it.
        kl: log pi(y|x) - log ref(y|x) in nats.
    """

    completion: Completion
    score: float
    kl: float


class SampleTable(BaseCallback):
    """Keeps a few completions of each iteration in the run's ``samples.jsonl``.

    One JSON object per line: ``step``, ``prompt`` and ``completion`` (texts, where there is a
    tokenizer), ``prompt_ids``, ``completion_ids``, ``score``, ``kl`` and ``finished``. It needs a
    learner with ``samples``.
    """

    FILE: Final = SAMPLES_FILE

    def __init__(self, tokenizer: Any = None, *, count: int = 4, every: int = 1) -> None:
        """Writes into whatever run it is used in.

        Args:
            tokenizer: turns ids into text; None: ids only.
            count: how many completions of an iteration to keep, at least 1.
            every: at every how many steps (episodes) an iteration is kept, at least 1.

        Raises:
            UserError: a number below 1.
        """
        for name, value in (("count", count), ("every", every)):
            if value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        self.tokenizer = tokenizer
        self.count = count
        self.every = every
        self._previous = 0

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Forgets samples of iterations that a resumed run takes back."""
        self._previous = learner.steps
        path = run.path / self.FILE
        if path.exists():
            rows = [row for row in read_samples(path) if row["step"] <= learner.steps]
            path.write_text("".join(_line(row) for row in rows), encoding="utf-8")

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """Appends the iteration's first completions."""
        passed = learner.steps // self.every > self._previous // self.every
        self._previous = learner.steps
        if passed:
            samples: Sequence[SampledCompletion] = getattr(learner, "samples", ())
            with (run.path / self.FILE).open("a", encoding="utf-8") as file:
                for sample in samples[: self.count]:
                    file.write(_line({"step": learner.steps, **self._row(sample)}))
        return None

    def _row(self, sample: SampledCompletion) -> dict[str, Any]:
        item = sample.completion
        row: dict[str, Any] = {}
        if self.tokenizer is not None:
            for name, ids in (("prompt", item.prompt_ids), ("completion", item.completion_ids)):
                row[name] = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return {
            **row,
            "prompt_ids": list(item.prompt_ids),
            "completion_ids": list(item.completion_ids),
            "score": sample.score,
            "kl": sample.kl,
            "finished": item.finished,
        }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
