"""What learning from preferences is made of, whatever learns: updates, measurements, held-out data.

DPO and reward models derive from :class:`PreferenceLearner`::

    for each batch of records:                       (members, if several, each in its own order)
        for each micro-batch, longest records first:            method: accumulate()
            loss = sum of its terms / records of the whole batch;  backward
        one AdamW step
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field
from torch import nn

from tether.errors import NonFiniteError
from tether.language.data.tokens import (
    Completion,
    Judgement,
    Pair,
    Ranking,
    TokenBatch,
    collate,
    collate_shared,
)
from tether.language.learners.language_learner import RecordLearner
from tether.language.learners.means import Means
from tether.language.learners.optimizer import OptimizationConfig, Optimizer, update_together
from tether.language.learners.order import Order
from tether.language.models.language_model import LanguageModel
from tether.learning.config import Config
from tether.learning.learner import Metrics, State

ComparisonRecord = Pair | Ranking
Preference = ComparisonRecord | Judgement
R = TypeVar("R", bound=Preference)


class PreferenceConfig(OptimizationConfig):
    """Settings of every method that learns from comparisons."""

    shared_prompt: bool = True
    """Reads a prompt once for all of its completions where the prompt is long enough for that to
    save time. The result is the same. Models with sliding-window attention need this turned off."""
    held_out: float = Field(0.0, ge=0, lt=1)
    """The fraction of the prompts that is kept out of training, to measure on."""
    evaluate_every: int = Field(20, ge=1)
    """Iterations between two measurements on the held-out prompts; the last iteration measures as
    well."""


class PreferenceLearner(RecordLearner[R], Generic[R]):
    """A learner whose experience is a list of comparisons; its steps count them.

    Attributes:
        data: what is learned from.
        held_out: what is measured on; may be empty.
        modules: what learns, by name.
    """

    config_class: ClassVar[type[Config]]

    def __init__(
        self,
        config: PreferenceConfig,
        language_model: LanguageModel,
        data: Sequence[R],
        *,
        seed: int,
        total_steps: int,
        held_out: Sequence[R] | None = None,
    ) -> None:
        """Takes the model, which it trains in place, and the comparisons.

        Args:
            config: the method's settings.
            language_model: with an adapter, only that is trained.
            data: comparisons that fit the model's context.
            seed: decides everything random.
            total_steps: comparisons the run is meant to take, for the schedule.
            held_out: comparisons to measure on; None: `config.held_out` of `data` is split off.

        Raises:
            UserError: no data, or some that does not fit the model.
        """
        super().__init__(
            config, language_model, data, seed=seed, total_steps=total_steps, held_out=held_out
        )
        self.init()
        lengths = [read_length(record) for record in self.data]
        self.optimizers = [Optimizer(group, config, total_steps) for group in self.groups()]
        # The first member's order is that of a lone learner.
        self.orders = [
            Order(lengths, config.batch_size, seed=seed, member=member)
            for member in range(self.members)
        ]

    @property
    def members(self) -> int:
        """How many models learn side by side, each meeting the data in an order of its own."""
        return 1

    def init(self) -> None:
        """Create what the method learns beside the language model, and put it into `modules`."""

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters by optimizer; all in one by default."""
        return [[p for m in self.modules.values() for p in m.parameters() if p.requires_grad]]

    def prepare(self) -> Metrics:
        """Work to be done before the first update, one piece at a time; nothing when it is done."""
        return {}

    @abstractmethod
    def accumulate(self, member: int, rows: Sequence[int], means: Means) -> int:
        """Add the gradient of a batch's mean loss, and its measurements.

        Args:
            member: which of the members learns.
            rows: places in `data`.
            means: takes the measurements.

        Returns:
            Tokens in the records.
        """

    @abstractmethod
    def evaluate(self, records: Sequence[R]) -> Metrics:
        """Measurements on other comparisons; changes nothing."""

    def finish(self) -> None:
        """What is left to do when the budget is spent."""

    def method_state(self) -> State:
        """The method's own part of the state, beside modules and optimizers."""
        return {}

    def restore_method(self, state: State) -> None:
        """Undoes :meth:`method_state`."""

    def iterate(self) -> Metrics:
        """One update, or one piece of the preparation; now and then a measurement.

        Raises:
            NonFiniteError: the loss or its gradient is NaN or infinite.
        """
        began = time.perf_counter()
        metrics = self.prepare()
        if metrics:
            return metrics
        means, tokens, count = Means(), 0, 0
        batches: list[list[int]] = []
        for member, order in enumerate(self.orders):
            rows = order.next()
            tokens += self.accumulate(member, rows, means)
            count = len(rows)
            batches.append(rows)
        metrics = means.read()
        self._check(metrics, batches)
        named = self._named(self._numbers(batches))
        updates = update_together(self.optimizers, self._steps, named)
        self._steps += count
        self._iterations += 1
        metrics |= {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        metrics["data/epoch"] = self._steps / len(self.data)
        metrics["time/tokens_per_second"] = tokens / (time.perf_counter() - began)
        last = self._steps >= self.total_steps
        if last:
            self.finish()
        if self.held_out and (last or self._iterations % self.config.evaluate_every == 0):
            measured = self.evaluate(self.held_out)
            metrics |= {f"held_out/{name}": value for name, value in measured.items()}
        return metrics

    def state(self) -> State:
        """Parameters, optimizers, places in the data, and what the method adds."""
        return {
            "modules": self.modules_state(),
            "optimizers": [optimizer.state() for optimizer in self.optimizers],
            "orders": [order.state() for order in self.orders],
            "method": self.method_state(),
            "steps": self._steps,
            "iterations": self._iterations,
        }

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`: training continues with the same numbers."""
        saved: Any = state
        self.restore_modules(saved["modules"])
        for optimizer, moments in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.restore(moments)
        for order, place in zip(self.orders, saved["orders"], strict=True):
            order.restore(place)
        self.restore_method(saved["method"])
        self._steps = int(saved["steps"])
        self._iterations = int(saved["iterations"])

    def layout(self, groups: Sequence[Sequence[Completion]]) -> TokenBatch:
        """Completions as a batch on the model's device, prompts read once if so configured."""
        model = self.language_model
        if self.config.shared_prompt and _sharing_pays(groups, model.hidden_size):
            batch = collate_shared(groups, pad_id=model.pad_id)
        else:
            batch = collate([item for group in groups for item in group], pad_id=model.pad_id)
        return batch.to(model.device)

    def numbered(self, member: int, row: int) -> int:
        """Where in `data` a member's row is."""
        return row

    def _check(self, metrics: Metrics, batches: Sequence[Sequence[int]]) -> None:
        """Refuses measurements that are not finite, and finds the records they come from."""
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if not bad:
            return
        culprits = set()
        for member, rows in enumerate(batches):
            for row in rows:
                means = Means()
                self.accumulate(member, [row], means)
                if not all(map(math.isfinite, means.read().values())):
                    culprits.add(self.numbered(member, row))
        for optimizer in self.optimizers:
            optimizer.clear()
        name = "loss" if "loss" in bad else min(bad)
        raise NonFiniteError(
            f"{name} became {bad[name]} at step {self._steps}, in "
            f"{self._named(sorted(culprits) or self._numbers(batches))}; lower learning_rate "
            f"({self.config.learning_rate:g}) or look at the data"
        )

    def _numbers(self, batches: Sequence[Sequence[int]]) -> list[int]:
        """Places in `data` of all that was read."""
        return sorted({self.numbered(m, row) for m, rows in enumerate(batches) for row in rows})

    def _named(self, rows: Sequence[int]) -> str:
        """Some records, as an error names them: counted from 1."""
        shown = ", ".join(str(row + 1) for row in rows[:10]) + (", ..." if len(rows) > 10 else "")
        return f"record{'s' if len(rows) > 1 else ''} {shown} of the training data"


def _sharing_pays(groups: Sequence[Sequence[Completion]], hidden_size: int) -> bool:
    """Whether reading prompts once saves more than attention over longer rows costs.

    A layer takes about 24 H^2 operations for each token, and 4 H for each pair of them in a row.
    """
    apart = together = 0.0
    for group in groups:
        prompt, answers = len(group[0].prompt_ids), [len(item.completion_ids) for item in group]
        rows = [prompt + answer for answer in answers]
        row = prompt + sum(answers)
        apart += sum(rows) + sum(length**2 for length in rows) / (6 * hidden_size)
        together += row + row**2 / (6 * hidden_size)
    return together < apart


def read_length(record: Preference) -> int:
    """Tokens of the prompt and of all completions."""
    completions = record.as_completions()
    return len(record.prompt_ids) + sum(len(c.completion_ids) for c in completions)
