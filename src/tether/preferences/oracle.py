"""The teacher that knows the true reward, as perfect or as human as asked for."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError
from tether.preferences.items import Item, Segment
from tether.preferences.records import Answer, Query

Rewards: TypeAlias = Callable[[Sequence[Item]], Sequence[Any]]
"""True rewards of items: for each a number, or one number for each of its steps."""

_NAMESPACE: Final = uuid.UUID("8d9f1a52-4c1f-5d0e-9a55-6f2b6f3c7e10")


class OracleTeacher:
    """Compares items by their true reward, with the mistakes of B-Pref's simulated teachers.

    For two segments of H steps with rewards r and myopic sums G = sum_t gamma^(H - t) r_t:

    1. it can't tell (None) if the larger undiscounted sum is below the skip threshold;
    2. it calls a tie (0.5) if the undiscounted sums differ by less than the equal threshold, or not
       at all;
    3. else it prefers the first with probability sigmoid(beta (G_0 - G_1)), or the larger G if
       `beta` is None;
    4. and with probability `mistake` it says the opposite.

    Both thresholds are the share `skip` or `equal` of what the current policy gets in H steps on
    average: `skip * H * reward_per_step`. They are multiplied once; B-Pref's code multiplies by
    the share twice after its first session, so its 0.1 acts as 0.01.

    K > 2 items are ranked by G plus Gumbel noise / beta (Plackett-Luce, which for K = 2 is the
    above); a mistake reverses the ranking, and there are no ties.

    An answer is decided by the seed and the query alone, whenever and in whatever order it is
    asked for, and its UUID too, so a run that is resumed does not answer twice.

    Args:
        seed: of all its chances.
        beta: rationality, per unit of reward; None: always what is better.
        gamma: weighs steps before the last by less than 1, in (0, 1].
        mistake: probability of saying the opposite, in [0, 1].
        skip: share of the average return below which it can't tell, at least 0.
        equal: share of the average return below which a difference is a tie, at least 0.
        reward_per_step: the current policy's average true reward of a step; set it anew as the
            policy learns. At or below 0, nothing is skipped, and ties go by its size.
        reward: true rewards of items; None: those that segments carry.
        name: the annotator of its answers.

    Raises:
        UserError: an argument out of range.

    Source:
        Lee et al., "B-Pref: Benchmarking Preference-Based Reinforcement Learning" (2021),
        section 4.1 and algorithm 1.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        beta: float | None = None,
        gamma: float = 1.0,
        mistake: float = 0.0,
        skip: float = 0.0,
        equal: float = 0.0,
        reward_per_step: float = 0.0,
        reward: Rewards | None = None,
        name: str = "oracle",
    ) -> None:
        if beta is not None and not 0 < beta < math.inf:
            raise UserError(f"beta is {beta}; expected a number above 0, or None")
        if not 0 < gamma <= 1:
            raise UserError(f"gamma is {gamma}; expected a number in (0, 1]")
        if not 0 <= mistake <= 1:
            raise UserError(f"mistake is {mistake}; expected a probability in [0, 1]")
        for option, value in (("skip", skip), ("equal", equal)):
            if not 0 <= value < math.inf:
                raise UserError(f"{option} is {value}; expected a share of at least 0")
        self.name = name
        self.seed = seed
        self.beta = beta
        self.gamma = gamma
        self.mistake = mistake
        self.skip = skip
        self.equal = equal
        self.reward_per_step = reward_per_step
        self._reward = reward

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """Answers all of them.

        Raises:
            UserError: an item's true reward is missing or not finite.
        """
        items = {item.id: item for _, shown in queries for item in shown}
        rewards = dict(zip(items, self._rewards([*items.values()]), strict=True))
        return [
            self._answer(query, [rewards[item.id] for item in shown]) for query, shown in queries
        ]

    def _rewards(self, items: list[Item]) -> list[NDArray[np.float64]]:
        found = [_own_reward(i) for i in items] if self._reward is None else self._reward(items)
        if len(found) != len(items):
            raise UserError(f"the reward gave {len(found)} values for {len(items)} items")
        rewards = [np.atleast_1d(np.asarray(value, np.float64)) for value in found]
        for item, reward in zip(items, rewards, strict=True):
            if reward.ndim != 1 or not np.isfinite(reward).all():
                raise UserError(
                    f"the reward of item {item.id} is {reward!r:.60}; expected a finite number, or "
                    "one for each step"
                )
        return rewards

    def _answer(self, query: Query, rewards: list[NDArray[np.float64]]) -> Answer:
        ranking: tuple[int, ...] | None = None
        sums = [float(reward.sum()) for reward in rewards]
        per_share = max(map(len, rewards)) * self.reward_per_step
        random = self._random(query)
        noise = random.gumbel(size=len(rewards))
        wrong = random.random() < self.mistake
        preference: float | None = None
        least = self.skip * per_share
        if least <= 0 or max(sums) >= least:
            values = np.array([_myopic(reward, self.gamma) for reward in rewards])
            # Dividing the noise keeps beta of any size safe; the order is that of beta G + noise.
            noisy = values if self.beta is None else values + noise / self.beta
            if len(rewards) > 2:
                # Equal values of a teacher without noise go by lot, not by position.
                order = [int(i) for i in np.lexsort((noise, noisy))[::-1]]
                ranking = tuple(order[::-1] if wrong else order)
            else:
                gap = abs(sums[0] - sums[1])
                if gap == 0 or gap < self.equal * abs(per_share) or noisy[0] == noisy[1]:
                    preference = 0.5
                else:
                    preference = float((noisy[0] > noisy[1]) != wrong)
        return Answer(
            query=query.id,
            preference=preference,
            ranking=ranking,
            annotator=self.name,
            uuid=str(uuid.uuid5(_NAMESPACE, f"{self.name}/{self.seed}/{query.id}")),
        )

    def _random(self, query: Query) -> np.random.Generator:
        digest = hashlib.sha256(f"oracle/{self.seed}/{query.id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _own_reward(item: Item) -> NDArray[np.float64]:
    if not isinstance(item, Segment):
        raise UserError(
            f"item {item.id} is a text, which carries no reward; give the oracle one: reward=..."
        )
    if item.reward is None:
        raise UserError(f"segment {item.id} does not have its true reward, which the oracle needs")
    reward: NDArray[np.float64] = item.reward
    return reward


def _myopic(reward: NDArray[np.float64], gamma: float) -> float:
    weights = gamma ** np.arange(len(reward) - 1, -1, -1, dtype=np.float64)
    return float(weights @ reward)
