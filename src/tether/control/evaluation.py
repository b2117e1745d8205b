"""How good a policy is: whole episodes, from their own seeds."""

from __future__ import annotations

from typing import NamedTuple

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


class Evaluation(NamedTuple):
    """Undiscounted returns (E,) and lengths (E,) in steps of E whole episodes."""

    returns: np.ndarray
    lengths: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """Mean, standard deviation (population), extremes and mean length."""
        return {
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
    running = np.zeros(count)
    length = np.zeros(count, np.int64)
    results: list[tuple[int, int, float, int]] = []
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
        length += 1
        if length.max() > LONGEST_EPISODE:
            raise UserError(
                f"an episode of {env.id} has not ended after {LONGEST_EPISODE:,} steps; give the "
                "environment a time limit, such as "
                "--env-kwargs '{\"max_episode_steps\": 1000}'"
            )
        for n in np.flatnonzero(step.terminated | step.truncated):
            if finished[n] < share[n]:
                results.append((int(finished[n]), int(n), float(running[n]), int(length[n])))
            finished[n] += 1
            running[n], length[n] = 0.0, 0
        observation = step.observation
    results.sort()
    return Evaluation(
        np.array([r for *_, r, _ in results]), np.array([n for *_, n in results], np.int64)
    )
