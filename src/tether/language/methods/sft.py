"""Instruction tuning: make the demonstrators' answers probable.

    for each batch of demonstrations:
        L = - sum over the answers' tokens of log pi_theta(token | what came before) / their number
        one AdamW step along the gradient of L

The loss is summed over micro-batches and divided once by the number of learned tokens in the whole
batch, so neither the size of the micro-batches, nor padding, nor packing changes the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tether.errors import NonFiniteError, UserError
from tether.language.data.tokens import Example, TokenBatch, collate, collate_packed
from tether.language.learners.language_learner import RecordLearner
from tether.language.learners.optimizer import OptimizationConfig, Optimizer
from tether.language.learners.order import Order
from tether.language.learners.splitting import micro_batches
from tether.language.models.language_model import LanguageModel
from tether.language.models.logprobs import token_log_probs
from tether.language.runtime.processes import processes
from tether.learning.config import Config, When
from tether.learning.learner import Metrics, State
from tether.objectives import masked_negative_log_likelihood


class SFTConfig(OptimizationConfig):
    """Settings of instruction tuning."""

    applies: ClassVar[dict[str, When]] = {"packed_length": When("packing", values=(True,))}

    length_bucketing: bool = True
    """Puts examples of similar length into a batch, which needs less padding. Packing does not use
    it."""
    packing: bool = False
    """Puts several short examples into one row, where no example attends to another; almost no
    padding is left."""
    packed_length: int = Field(1024, ge=1)
    """The length of a packed row in tokens; a longer example gets a row of its own."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """The fraction of the prompts that is kept out of training, to measure on."""
    evaluate_every: int = Field(100, ge=1)
    """Iterations between two measurements on the held-out prompts; the first and the last iteration
    measure as well."""


class SFTLearner(RecordLearner[Example]):
    """Supervised fine-tuning of a language model on demonstrations; its steps count examples.

    Attributes:
        data: what is learned.
        held_out: what is measured on; may be empty.

    Source:
        InstructGPT (Ouyang et al. 2022), section 3.5, step 1.
    """

    config: SFTConfig
    config_class: ClassVar[type[Config]] = SFTConfig

    def __init__(
        self,
        config: SFTConfig,
        language_model: LanguageModel,
        data: Sequence[Example],
        *,
        seed: int,
        total_steps: int,
        held_out: Sequence[Example] | None = None,
    ) -> None:
        """Takes the model, which it trains in place, and the demonstrations.

        Args:
            config: the settings.
            language_model: with an adapter, only that is trained.
            data: demonstrations that fit the model's context.
            seed: decides the order of the examples.
            total_steps: examples the run is meant to take, for the schedule.
            held_out: demonstrations to measure on; None: `config.held_out` of `data` is split off.

        Raises:
            UserError: no data, or some that does not fit the model.
        """
        super().__init__(
            config, language_model, data, seed=seed, total_steps=total_steps, held_out=held_out
        )
        # Errors name examples as they were given, whatever was split off.
        numbers = {id(example): number for number, example in enumerate(data, start=1)}
        self._numbers = [numbers[id(example)] for example in self.data]
        self.optimizer = Optimizer(language_model.trainable_parameters(), config, total_steps)
        self.order = Order(
            [_length(example) for example in self.data],
            config.batch_size,
            seed=seed,
            bucket=config.length_bucketing and not config.packing,
        )

    def iterate(self) -> Metrics:
        """One gradient step on one batch; now and then a measurement on what was held out.

        Raises:
            UserError: no token of the batch is to be learned.
            NonFiniteError: the loss or its gradient is NaN or infinite; no parameter has moved.
        """
        # Where the model started belongs to the first line, or progress could not be seen.
        before = self._measured("held_out/loss_before") if self._steps == 0 else {}
        began = time.perf_counter()
        rows = self.order.next()
        examples = [self.data[row] for row in rows]
        learned = sum(_learned(example) for example in examples)
        if learned == 0:
            raise UserError(
                f"no token of the batch at step {self._steps} is to be learned: every loss mask "
                f"of {self._named(rows)} is all false"
            )
        # Of each example, summed over its tokens.
        losses = torch.zeros(len(rows), dtype=torch.float64, device=self.language_model.device)
        for places, batch in self._batches(examples):
            log_probs, mask = token_log_probs(self.language_model, batch)
            terms = masked_negative_log_likelihood(log_probs, mask, reduction="none").sum(1)
            (terms.sum() / learned).backward()
            losses[places] = terms.detach().double()
        processes().add_up([losses])
        loss = float(losses.sum())
        if not math.isfinite(loss):
            self.optimizer.clear()
            raise self._diverged(rows, losses)
        metrics = before | self.optimizer.update(self._steps, self._named(rows))
        self._steps += len(rows)
        self._iterations += 1
        seconds = time.perf_counter() - began
        metrics["loss"] = loss / learned
        metrics["tokens/length"] = learned / len(rows)
        metrics["data/epoch"] = self._steps / len(self.data)
        metrics["time/tokens_per_second"] = sum(map(_length, examples)) / seconds
        last = self._steps >= self.total_steps
        if last or self._iterations % self.config.evaluate_every == 0:
            metrics |= self._measured("held_out/loss")
        return metrics

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> Metrics:
        """The mean loss over other demonstrations, nats per learned token; changes nothing."""
        total, learned = 0.0, 0
        for _, batch in self._batches(examples):
            log_probs, mask = token_log_probs(self.language_model, batch)
            total += float(masked_negative_log_likelihood(log_probs, mask, reduction="sum"))
            learned += batch.tokens
        parts = processes().gather([total, learned])
        return {"loss": sum(part[0] for part in parts) / sum(part[1] for part in parts)}

    def state(self) -> State:
        """Parameters, optimizer, and place in the data."""
        return {
            "modules": self.modules_state(),
            "optimizer": self.optimizer.state(),
            "order": self.order.state(),
            "steps": self._steps,
            "iterations": self._iterations,
        }

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`: training continues with the same numbers."""
        saved: Any = state
        self.restore_modules(saved["modules"])
        self.optimizer.restore(saved["optimizer"])
        self.order.restore(saved["order"])
        self._steps = int(saved["steps"])
        self._iterations = int(saved["iterations"])

    def _measured(self, name: str) -> Metrics:
        return {name: self.evaluate(self.held_out)["loss"]} if self.held_out else {}

    def _batches(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], TokenBatch]]:
        """Micro-batches, and the places of their examples in the order of their completions."""
        lengths = [_length(example) for example in examples]
        model, size = self.language_model, self.config.micro_batch_size
        if not self.config.packing:
            for places in micro_batches(lengths, size):
                batch = collate([examples[place] for place in places], pad_id=model.pad_id)
                yield places, batch.to(model.device)
            return
        rows = processes().share(pack(lengths, min(self.config.packed_length, model.context)))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            items = [[examples[place] for place in row] for row in part]
            batch = collate_packed(items, pad_id=model.pad_id)
            yield [place for row in part for place in row], batch.to(model.device)

    def _diverged(self, rows: Sequence[int], losses: Tensor) -> NonFiniteError:
        finite = torch.isfinite(losses).tolist()
        bad = [row for row, good in zip(rows, finite, strict=True) if not good]
        return NonFiniteError(
            f"the loss became {float(losses.sum())} at step {self._steps}, in "
            f"{self._named(bad)}; lower learning_rate ({self.config.learning_rate:g}) or look at "
            "the data"
        )

    def _named(self, rows: Iterable[int]) -> str:
        numbers = [str(self._numbers[row]) for row in sorted(rows)]
        shown = ", ".join(numbers[:10]) + (", ..." if len(numbers) > 10 else "")
        return f"example{'s' if len(numbers) > 1 else ''} {shown} of the data"


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts things of some lengths into few rows: each, longest first, into the first with room.

    Returns:
        Rows of indices. Something longer than `capacity` has a row of its own.

    Source:
        Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing
        Algorithms" (1974): first-fit decreasing takes at most 11/9 of the fewest rows, plus 4.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        for row, left in enumerate(room):
            if length <= left:
                rows[row].append(index)
                room[row] -= length
                break
        else:
            rows.append([index])
            room.append(capacity - length)
    return rows


def _length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.completion_ids)


def _learned(example: Example) -> int:
    mask = example.loss_mask
    return len(example.completion_ids) if mask is None else sum(mask)
