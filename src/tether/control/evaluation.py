"""How good a policy is: whole episodes, from their own seeds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from tether.control.demonstrations import Recorder
from tether.control.envs import VectorEnv
from tether.control.policy import Policy
from tether.errors import UserError
from tether.learning.seeding import Stream, generator

EVALUATION_SEED = 1_000_000
"""Environment seeds of evaluations start here; those of training are 63 random bits each."""

LONGEST_EPISODE = 100_000
"""Steps after which an evaluation gives up: a policy may stand in a corner for ever."""


NO_STATISTICS: Final[Mapping[str, np.ndarray]] = MappingProxyType({})
"""Of environments that say nothing about their episodes."""


class Evaluation(NamedTuple):
    """E whole episodes.

    Attributes:
        returns: (E,), undiscounted.
        lengths: (E,), in steps.
        true_returns: (E,), undiscounted sums of the true reward, or None where the environment
            does not report it.
        statistics: (E,) each, by name, what the environment said of its episodes.
    """

    returns: np.ndarray
    lengths: np.ndarray
    true_returns: np.ndarray | None = None
    statistics: Mapping[str, np.ndarray] = NO_STATISTICS

    def summary(self) -> dict[str, float | int]:
        """Mean, standard deviation (population), extremes and mean length."""
        further = {f"{name}_mean": float(v.mean()) for name, v in self.statistics.items()}
        if self.true_returns is not None:
            further["true_return_mean"] = float(self.true_returns.mean())
            further["true_return_std"] = float(self.true_returns.std())
        return {
            **further,
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "return_min": float(self.returns.min()),
            "return_max": float(self.returns.max()),
            "length_mean": float(self.lengths.mean()),
            "episodes": len(self.returns),
        }


def evaluate(
    policy: Policy,
    env: VectorEnv,
    *,
    episodes: int = 20,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    recorder: Recorder | None = None,
) -> Evaluation:
    """Run `episodes` whole episodes with frozen parameters and normalization.

    Each environment plays a fixed share of the episodes, so short episodes are not over-counted
    as they would be if the first to finish counted.

    Args:
        policy: acts; it is not changed.
        env: a vector environment nobody else steps; it is reset to `seed`.
        episodes: how many episodes, at least 1.
        seed: environment i starts from seed + i; also decides the noise of sampled actions.
        deterministic: the most probable action, else samples.
        recorder: keeps what happens in the episodes that count.

    Raises:
        UserError: episodes or seed is out of range, or an episode does not end.
    """
    if episodes < 1:
        raise UserError(f"episodes is {episodes}; expected at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; expected 0 or more")
    count, head = env.num_envs, policy.spec.head
    share = np.full(count, episodes // count)
    share[: episodes % count] += 1
    rng = generator(seed, Stream.EVALUATION_NOISE)
    finished = np.zeros(count, np.int64)
    running, true = np.zeros(count), np.zeros(count)
    length = np.zeros(count, np.int64)
    results: list[tuple[int, int, float, int, float, Mapping[str, float]]] = []
    observation = env.reset(seed)
    while (finished < share).any():
        distribution = policy.distribution(policy.normalize(observation))
        action = (
            distribution.mode() if deterministic else distribution.sample(head.noise(rng, (count,)))
        )
        given = head.to_environment(action)
        if recorder is not None:
            recorder.before(observation, given)
        step = env.step(given)
        if recorder is not None:
            recorder.after(step, finished < share)
        running += step.reward
        if step.true_reward is not None:
            true += step.true_reward
        length += 1
        if length.max() > LONGEST_EPISODE:
            raise UserError(
                f"an episode of {env.id} has not ended after {LONGEST_EPISODE:,} steps; give the "
                "environment a time limit, such as "
                "--env-kwargs '{\"max_episode_steps\": 1000}'"
            )
        for n in np.flatnonzero(step.terminated | step.truncated):
            if finished[n] < share[n]:
                numbers = (float(running[n]), int(length[n]), float(true[n]))
                said = step.statistics.get(int(n), {})
                results.append((int(finished[n]), int(n), *numbers, said))
            finished[n] += 1
            running[n], true[n], length[n] = 0.0, 0.0, 0
        observation = step.observation
    results.sort(key=lambda result: result[:2])
    _, _, returns, lengths, truths, said_of_each = zip(*results, strict=True)
    names = set.intersection(*(set(said) for said in said_of_each))
    return Evaluation(
        np.array(returns),
        np.array(lengths, np.int64),
        np.array(truths) if step.true_reward is not None else None,
        {name: np.array([said[name] for said in said_of_each]) for name in sorted(names)},
    )
