"""Language rollouts: which prompts come next, what the policy answers, and what that is worth.

A completion is an episode. Everything random about episode number e follows from the seed and from
e alone: the prompt that it answers, and the numbers that choose its tokens. So a rollout can be
split, reordered or resumed, and the only thing to remember is how many episodes there were.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tether.errors import NonFiniteError, UserError
from tether.language.data.tokens import Completion, Ids, Prompt, check_records
from tether.language.learners.optimizer import OptimizationConfig
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel
from tether.language.models.scoring import JointScorer, Reading, Scorer
from tether.language.runtime.processes import processes
from tether.learning.learner import State
from tether.learning.seeding import VERSION, Stream, derived_seed, generator


class RolloutConfig(OptimizationConfig):
    """Settings of every method that learns from its own completions."""

    batch_size: int = Field(64, ge=1)
    """Episodes (completions) per iteration. More episodes give steadier updates (usual: 64
    to 512)."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions of each prompt. RLOO and GRPO compare them and need at least 2 (usual: 4
    to 16)."""
    max_new_tokens: int = Field(32, ge=1)
    """The most tokens a completion may have, including the end-of-sequence token."""
    temperature: float = Field(1.0, gt=0)
    """The logits of the policy and of the reference are divided by this (usual: 0.7 to 1)."""
    stop_ids: tuple[int, ...] = ()
    """Further token ids that end a completion, such as that of a line break."""
    generation_batch_size: int = Field(64, ge=1)
    """Completions generated at once. More is faster and needs more memory; the completions stay the
    same up to rounding, which may change a token now and then."""


@dataclass(frozen=True, eq=False, slots=True)
class Episodes:
    """N completions and their scores. Those of one prompt follow each other.

    Attributes:
        completions: as sampled, stop token included.
        prompts: (N,) which prompt of the data each answers.
        scores: (N,) as the scorer gave them.
        members: of a scorer of several members, each one's scores by name, (N,); NaN where it does
            not apply.
        spread: the standard deviation of an ensemble's scores of each completion, (N,); NaN where
            there are fewer than two.
        scoring_seconds: how long the scorer took.
    """

    completions: list[Completion]
    prompts: NDArray[np.int64]
    scores: NDArray[np.float64]
    members: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    spread: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scoring_seconds: float = 0.0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each completion; (N,)."""
        return np.array([len(item.completion_ids) for item in self.completions], np.int64)

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which completions ended with a stop token and were not cut off; (N,)."""
        return np.array([item.finished for item in self.completions], bool)

    def named(self, rows: Sequence[int]) -> str:
        """Rows of the rollout, and which prompts they answer, for an error message."""
        some = list(rows)[:8]
        more = ", ..." if len(rows) > len(some) else ""
        numbers = ", ".join(str(row) for row in some)
        places = ", ".join(str(self.prompts[row]) for row in some)
        return f"rows {numbers}{more} of the rollout (answers to prompts {places}{more} of data)"


class EpisodeCollector:
    """Samples episodes from a policy and has them scored.

    Attributes:
        count: episodes sampled so far; with the seed it decides all that follow.
    """

    def __init__(
        self,
        config: RolloutConfig,
        language_model: LanguageModel,
        data: Sequence[Prompt],
        scorer: Scorer,
        *,
        seed: int,
    ) -> None:
        """Takes the policy, which others may move, and what it is asked.

        Args:
            config: how to sample.
            language_model: the policy.
            data: prompts (or longer records, of which only the prompt counts); all of them are
                met once, shuffled, before any is met again.
            scorer: says what a completion is worth.
            seed: decides order and samples.

        Raises:
            UserError: no prompts, or one that leaves no room for a completion, or a stop id that is
                no token.
        """
        prompts = [Prompt(record.prompt_ids) for record in data]
        context, new = language_model.context, config.max_new_tokens
        check_records(prompts, vocabulary=language_model.vocabulary, context=context)
        for index, prompt in enumerate(prompts):
            if len(prompt.prompt_ids) + new > context:
                raise UserError(
                    f"data[{index}] has {len(prompt.prompt_ids)} tokens, and max_new_tokens is "
                    f"{new}; together they exceed the model's context of {context}: shorten the "
                    "prompt or lower max_new_tokens"
                )
        for stop in config.stop_ids:
            if not 0 <= stop < language_model.vocabulary:
                raise UserError(
                    f"stop_ids holds {stop}; expected ids of tokens, 0 to "
                    f"{language_model.vocabulary - 1}"
                )
        self.config = config
        self.language_model = language_model
        self.prompts = prompts
        self.scorer = scorer
        self.seed = seed
        self.count = 0

    @property
    def stop_ids(self) -> Ids:
        """Tokens that end a completion."""
        return (*self.language_model.stop_ids, *self.config.stop_ids)

    @property
    def longest(self) -> int:
        """Most tokens that a prompt and its completion can take."""
        prompts = (len(prompt.prompt_ids) for prompt in self.prompts)
        return max(prompts) + self.config.max_new_tokens

    def collect(self) -> Episodes:
        """The next `batch_size` episodes.

        Raises:
            RewardError: a reward failed; nothing has moved.
            NonFiniteError: a score is NaN or infinite.
            UserError: the scorer gave something else than one number for each completion.
        """
        config = self.config
        numbers = range(self.count, self.count + config.batch_size)
        groups = [number // config.samples_per_prompt for number in numbers]
        prompts = shuffled(groups, len(self.prompts), self.seed, Stream.PROMPT_ORDER)
        places = processes().share(range(config.batch_size))
        completions = generate(
            self.language_model,
            [self.prompts[prompts[place]].prompt_ids for place in places],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop_ids=self.stop_ids,
            seeds=[derived_seed(self.seed, Stream.TOKENS, numbers[place]) for place in places],
            batch_size=config.generation_batch_size,
        )
        completions = [
            replace(item, row=prompts[place])
            for item, place in zip(completions, places, strict=True)
        ]
        sampled = time.perf_counter()
        read = self._score(completions)
        scored = time.perf_counter()
        completions, table = _together(
            completions, np.vstack([read.total[None], read.spread[None], read.members])
        )
        names = self.scorer.names if isinstance(self.scorer, JointScorer) else ()
        scores = table[0]
        episodes = Episodes(
            completions,
            np.array(prompts, np.int64),
            scores,
            dict(zip(names, table[2:], strict=True)),
            table[1],
            scored - sampled,
        )
        bad = np.flatnonzero(~np.isfinite(scores)).tolist()
        if bad:
            raise NonFiniteError(
                f"the score became {scores[bad[0]]} at step {self.count} in {episodes.named(bad)}; "
                "look at the reward model or function"
            )
        self.count += config.batch_size
        return episodes

    def _score(self, completions: Sequence[Completion]) -> Reading:
        count = len(completions)
        if isinstance(self.scorer, JointScorer):
            return self.scorer.read(completions)
        scores = np.asarray(self.scorer(completions), np.float64)
        if scores.shape != (count,):
            raise UserError(
                f"the scorer gave an array of shape {scores.shape} for {count} completions; "
                f"expected ({count},)"
            )
        return Reading(scores, np.zeros((0, count)), np.full(count, np.nan))

    def state(self) -> State:
        """How many episodes there were."""
        return {"streams": VERSION, "count": self.count}

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`."""
        saved: Any = state
        # The episodes of the first checkpoints, which do not say it, cannot be drawn any more.
        _ = saved["streams"]
        self.count = int(saved["count"])


def shuffled(numbers: Sequence[int], total: int, seed: int, purpose: Stream) -> list[int]:
    """Places in an endless stream of `total` records, shuffled anew every time all have been met.

    Args:
        numbers: which places of the stream, from 0.
        total: how many records there are.
        seed: of the run.
        purpose: what the records are for; each purpose has an order of its own.

    Returns:
        The record at each place; it depends on the place, the seed and the purpose alone.
    """
    orders: dict[int, NDArray[np.int64]] = {}
    records = []
    for number in numbers:
        epoch, place = divmod(number, total)
        if epoch not in orders:
            orders[epoch] = generator(seed, purpose, epoch).permutation(total)
        records.append(int(orders[epoch][place]))
    return records


def _together(
    completions: list[Completion], scores: NDArray[np.float64]
) -> tuple[list[Completion], NDArray[np.float64]]:
    """The shares of all processes, in the order of the episodes; scores are (K, N)."""
    group = processes()
    if group.count == 1:
        return completions, scores
    rows = [
        [item.prompt_ids, item.completion_ids, item.finished, own]
        for item, own in zip(completions, scores.T.tolist(), strict=True)
    ]
    shares = group.gather(rows)
    every = [shares[i % group.count][i // group.count] for i in range(sum(map(len, shares)))]
    found = [Completion(tuple(row[0]), tuple(row[1]), row[2]) for row in every]
    return found, np.array([row[3] for row in every], np.float64).T
