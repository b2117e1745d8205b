"""A tether policy with the interface of a Stable-Baselines3 model."""

from __future__ import annotations

from typing import Any

import numpy as np

from tether.control.policy import Policy


class SB3Policy:
    """What :func:`as_sb3` returns: `predict` as Stable-Baselines3's models have it."""

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.policy = policy
        self.observation_space = policy.spec.source_space
        self.action_space = policy.spec.head.space
        self._rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The action for one observation, or for a batch.

        Args:
            observation: as :meth:`tether.control.policy.Policy.predict` takes it.
            state: passed through: the policy is not recurrent.
            episode_start: not used, for the same reason.
            deterministic: the most probable action; otherwise a sample, as is the default here.

        Returns:
            The action or actions, as arrays, and `state`.
        """
        action = self.policy.predict(
            observation, deterministic=deterministic, rng=None if deterministic else self._rng
        )
        return np.asarray(action), state


def as_sb3(policy: Policy, *, seed: int = 0) -> SB3Policy:
    """A view of a policy on which Stable-Baselines3's tools run, such as `evaluate_policy`.

    Stable-Baselines3 itself is not needed::

        from stable_baselines3.common.evaluation import evaluate_policy

        mean, std = evaluate_policy(tether.as_sb3(policy), gymnasium.make("Hopper-v5"))

    Args:
        policy: what :func:`tether.load` returns.
        seed: of the samples, where actions are not deterministic.
    """
    return SB3Policy(policy, seed)
