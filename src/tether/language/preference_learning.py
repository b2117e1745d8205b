"""What learning from preferences is made of, whatever learns: updates, measurements, held-out data.

DPO and reward models derive from :class:`PreferenceLearner`::

    for each batch of records:                       (members, if several, each in its own order)
        for each micro-batch, longest records first:            method: accumulate()
            loss = sum of its terms / records of the whole batch;  backward
        one AdamW step
"""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import Field
from torch import Tensor, nn, stack

from tether.errors import NonFiniteError, UserError
from tether.language.models import LanguageModel
from tether.language.optimization import OptimizationConfig, Optimizer
from tether.language.order import Order
from tether.language.tokens import (
    Completion,
    Pair,
    Ranking,
    TokenBatch,
    check_records,
    collate,
    collate_shared,
)
from tether.language.weights import load_parameters, parameters_to_state
from tether.learning.learner import Metrics, State

Comparison = Pair | Ranking
R = TypeVar("R", bound=Comparison)


class _Prompted(Protocol):
    @property
    def prompt_ids(self) -> Sequence[int]: ...


P = TypeVar("P", bound=_Prompted)


class PreferenceConfig(OptimizationConfig):
    """Settings of every method that learns from comparisons."""

    shared_prompt: bool = True
    """Read a prompt once for all its completions: the same result, faster where prompts are long.
    Off for models that cannot take it (sliding windows)."""
    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts kept from training, to measure on."""
    evaluate_every: int = Field(20, ge=1)
    """Iterations between two measurements on them; the last iteration measures, too."""


class PreferenceLearner(ABC, Generic[R]):
    """A learner whose experience is a list of comparisons; its steps count them.

    Attributes:
        data: what is learned from.
        held_out: what is measured on; may be empty.
        modules: what learns, by name.
    """

    config: Any
    config_class: ClassVar[type[PreferenceConfig]]

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
        self.config = config
        self.language_model = language_model
        self.seed = seed
        self.total_steps = total_steps
        for source, records in (("data", data), ("held_out", held_out)):
            if source == "data" or records:
                check_records(
                    records or (),
                    vocabulary=language_model.vocabulary,
                    context=language_model.context,
                    source=source,
                )
        self.data, self.held_out = (
            split(data, config.held_out) if held_out is None else (list(data), list(held_out))
        )
        self.modules: dict[str, nn.Module] = {"model": language_model.model}
        self._steps = 0
        self._iterations = 0
        self.init()
        lengths = [read_length(record) for record in self.data]
        self.optimizers = [Optimizer(group, config, total_steps) for group in self.groups()]
        # The first member's order is that of a lone learner.
        self.orders = [
            Order(lengths, config.batch_size, seed=seed + member * _ORDERS_APART)
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

    @property
    def steps(self) -> int:
        """Comparisons consumed so far; with several members, by each of them."""
        return self._steps

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
        for member, order in enumerate(self.orders):
            rows = order.next()
            tokens += self.accumulate(member, rows, means)
            count = len(rows)
        metrics = means.read()
        self._check(metrics)
        updates = [optimizer.update(self._steps) for optimizer in self.optimizers]
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
            "modules": {name: parameters_to_state(m) for name, m in self.modules.items()},
            "optimizers": [optimizer.state() for optimizer in self.optimizers],
            "orders": [order.state() for order in self.orders],
            "method": self.method_state(),
            "steps": self._steps,
            "iterations": self._iterations,
        }

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`: training continues with the same numbers."""
        saved: Any = state
        for name, module in self.modules.items():
            load_parameters(module, saved["modules"][name])
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
        # One completion by itself has nobody to share its prompt with.
        shared = self.config.shared_prompt and any(len(group) > 1 for group in groups)
        if shared:
            batch = collate_shared(groups, pad_id=model.pad_id)
        else:
            batch = collate([item for group in groups for item in group], pad_id=model.pad_id)
        return batch.to(model.device)

    def _check(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                for optimizer in self.optimizers:
                    optimizer.clear()
                raise NonFiniteError(
                    f"{name} became {value} at step {self._steps}; lower learning_rate "
                    f"({self.config.learning_rate:g}) (the last checkpoint is intact)"
                )


_ORDERS_APART = 1_000_003


class Means:
    """Means of measurements: summed where they arise, read from the device all at once."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self._sums: dict[str, tuple[Tensor, float]] = {}

    def add(self, name: str, total: Tensor, count: float = 1) -> None:
        """Takes in a sum of `count` values, a tensor without axes."""
        total = total.detach()
        if name in self._sums:
            before, counted = self._sums[name]
            total, count = before + total, counted + count
        self._sums[name] = (total, count)

    def read(self) -> Metrics:
        """The mean of each measurement of at least one value."""
        counted = {name: pair for name, pair in self._sums.items() if pair[1]}
        if not counted:
            return {}
        # float64 keeps a count of tokens whole, and adds up micro-batches without rounding.
        totals = stack([total.double() for total, _ in counted.values()]).tolist()
        return {
            name: total / count
            for total, (name, (_, count)) in zip(totals, counted.items(), strict=True)
        }


def micro_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places in a batch, at most `size` at a time, longest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def read_length(record: Comparison) -> int:
    """Tokens of the prompt and of all completions."""
    completions = record.as_completions()
    return len(record.prompt_ids) + sum(len(c.completion_ids) for c in completions)


def split(data: Sequence[P], share: float) -> tuple[list[P], list[P]]:
    """Records to learn from, and records to measure on.

    All records of a prompt land on one side, so that nothing learned about a prompt helps to
    recognize its answers. Which side follows from the tokens alone, not from order or seed. If all
    have one and the same prompt, they are split one by one.

    Args:
        data: any records with prompts.
        share: of the prompts to hold out, in [0, 1). Unless zero, at least one prompt is held out;
            at least one is left.

    Raises:
        UserError: there are not two to tell apart.
    """
    if not share:
        return list(data), []
    keys = [_digest(record.prompt_ids) for record in data]
    if len(set(keys)) < 2:
        keys = [_digest(record) for record in data]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise UserError(
            f"held_out is {share}, but the data hold nothing to split ({len(data)} records, all "
            "alike); give more data, or held_out 0"
        )
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    apart = set(distinct[:count])
    sides: tuple[list[P], list[P]] = ([], [])
    for record, key in zip(data, keys, strict=True):
        sides[key in apart].append(record)
    return sides


def _digest(tokens: object) -> bytes:
    return hashlib.sha256(repr(tokens).encode()).digest()
