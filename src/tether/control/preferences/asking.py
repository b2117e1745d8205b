"""New queries: segments of what the policy did, chosen by the rule that is set."""

from __future__ import annotations

from typing import Any

import numpy as np

from tether.control.preferences.comparisons import Comparisons
from tether.control.preferences.config import PreferConfig
from tether.control.preferences.history import History, Window
from tether.control.preferences.inputs import RewardInputs
from tether.control.preferences.queries import SELECTIONS, distinct
from tether.control.preferences.reward_model import RewardModel
from tether.control.preferences.segments import Cutter
from tether.errors import UserError
from tether.learning.learner import State
from tether.preferences.items import Segment
from tether.preferences.records import Query

RANDOM_POLICY = "random-policy"
"""What queries about the untrained policy name as their source."""


class Asker:
    """Draws candidate queries from a history and keeps those that the rule prefers.

    Attributes:
        cutter: cuts the segments.
        asked: how many queries there have been.
    """

    def __init__(
        self,
        config: PreferConfig,
        env_id: str,
        length: int,
        *,
        cutter: Cutter,
        history: History,
        inputs: RewardInputs,
        model: RewardModel,
        data: Comparisons,
        rng: np.random.Generator,
    ) -> None:
        """What it looks at changes while the policy learns.

        Args:
            config: the settings.
            env_id: named in errors.
            length: of a segment, in steps.
            cutter: cuts the segments.
            history: what the policy did.
            inputs: from observations and actions to what the reward model reads.
            model: the reward model.
            data: the comparisons so far.
            rng: draws the candidates.
        """
        self.cutter = cutter
        self.asked = 0
        self._config = config
        self._id = env_id
        self._length = length
        self._history = history
        self._inputs = inputs
        self._model = model
        self._data = data
        self._rng = rng

    def state(self) -> State:
        """What decides the next queries, beside what it looks at."""
        return {"rng": dict(self._rng.bit_generator.state), "asked": self.asked}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._rng.bit_generator.state = state["rng"]
        self.asked = int(state["asked"])

    def queries(self, count: int, step: int) -> list[tuple[Query, list[Segment]]]:
        """New queries by the rule that is set; by chance, as long as there is no reward model.

        Args:
            count: how many; fewer where two segments of a query have equal content.
            step: the policy's, which the queries record.

        Raises:
            UserError: the history has too few segments.
        """
        config = self._config
        untrained = self._model.fits == 0
        rule = "uniform" if untrained else config.queries
        source = RANDOM_POLICY if untrained else rule
        windows = self._history.windows(self._length)
        if len(windows) < config.items:
            raise UserError(
                f"the episodes of {self._id} have given {len(windows)} segments so far; "
                f"expected at least {config.items}; give a larger random_steps or a smaller "
                "segment_steps"
            )
        candidates = count if rule == "uniform" else count * config.candidates
        drawn = distinct(self._rng, len(windows), candidates, config.items)
        if rule != "uniform":
            inputs, mask = self._candidate_inputs(windows[drawn])
            chosen = SELECTIONS[rule](
                count,
                self._model.sums(inputs, mask),
                self._features(inputs, mask),
                self._features(self._data.inputs, self._data.mask),
            )
            drawn = drawn[chosen]
        queries = []
        for row in drawn:
            items = [self.cutter.cut(self._history, Window(*map(int, windows[i]))) for i in row]
            ids = tuple(item.id for item in items)
            if len(set(ids)) < len(ids):
                continue  # two segments of equal content say nothing about each other
            query = Query(items=ids, source=source, step=step, nonce=str(self.asked))
            queries.append((query, items))
            self.asked += 1
        return queries

    def _candidate_inputs(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The reward model's inputs of candidates (Q, K, 3): (Q, K, L, D), and their mask."""
        shape = (*windows.shape[:2], *self._data.inputs.shape[2:])
        inputs, mask = np.zeros(shape, np.float32), np.zeros(shape[:3], bool)
        for q, row in enumerate(windows):
            for k, (start, n, length) in enumerate(row):
                rows = slice(start, start + length)
                found = self._inputs.of_segment(
                    self._history.observation[rows, n], self._history.action[rows, n]
                )
                inputs[q, k, : len(found)], mask[q, k, : len(found)] = found, True
        return inputs, mask

    def _features(self, inputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Where queries lie, (Q, K D): the mean inputs of their segments, in units of spread."""
        moments = self._model.input_moments
        count = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
        mean = np.where(mask[..., None], inputs, 0.0).sum(axis=-2) / count
        scaled = (mean - moments.mean) / np.sqrt(moments.variance + 1e-8)
        return np.asarray(scaled.reshape(len(inputs), -1))
