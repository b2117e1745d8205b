"""The policy that training began with: how far the one that learns has gone from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tether import objectives
from tether.control.policy import Policy


class InitialPolicy:
    """A frozen copy of a policy, with the normalization it had."""

    def __init__(self, policy: Policy) -> None:
        """Copies the policy as it stands."""
        self._policy = Policy.from_state(policy.spec, policy.state())

    def penalized(
        self,
        reward: np.ndarray,
        policy: Policy,
        raw: np.ndarray,
        seen: np.ndarray,
        action: np.ndarray,
        coefficient: float,
    ) -> np.ndarray:
        """Rewards less the price of leaving this policy.

        Args:
            reward: (T, N).
            policy: that acted.
            raw: (T, N, *obs), its observations before normalization.
            seen: (T, N, *obs), the same after it.
            action: (T, N, *act), as it chose them.
            coefficient: KL coefficient, in units of `reward` per nat.

        Returns:
            (T, N), see :func:`tether.objectives.kl_penalized_reward`.
        """
        actions = _flat(action)
        ours = policy.distribution(_flat(seen)).log_prob(actions)
        theirs = self._policy.distribution(self._policy.normalize(_flat(raw))).log_prob(actions)
        log_ratio = np.asarray(ours - theirs, float).reshape(reward.shape)
        charged: np.ndarray = objectives.kl_penalized_reward(reward, log_ratio, coefficient)
        return charged

    def kl(self, policy: Policy, raw: np.ndarray, seen: np.ndarray) -> float:
        """E_s[KL(pi(.|s) || pi_0(.|s))] in nats a step, in closed form.

        Args:
            policy: pi.
            raw: (T, N, *obs), the states before normalization.
            seen: (T, N, *obs), the same as pi sees them.
        """
        ours = policy.distribution(_flat(seen))
        theirs = self._policy.distribution(self._policy.normalize(_flat(raw)))
        return float(np.mean(np.asarray(ours.kl(theirs), float)))

    def state(self) -> dict[str, Any]:
        """The policy's own state."""
        return self._policy.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._policy = Policy.from_state(self._policy.spec, state)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[2:])
