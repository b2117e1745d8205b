"""What the reward model sees of a step: r(s), r(s, a) or r(s, a, s')."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np

from tether.control.envs import VectorEnv
from tether.errors import UserError

Inputs: TypeAlias = Literal["state", "state-action", "transition"]
"""What a reward model may see of a step."""


class RewardInputs:
    """Turns steps into vectors of D numbers.

    Discrete actions become one-hot vectors; Box actions are those that the environment got, within
    its bounds.

    Attributes:
        width: D.
        kind: ``state``, ``state-action`` or ``transition``.
    """

    def __init__(self, env: VectorEnv, kind: Inputs) -> None:
        """Reads the spaces of an environment.

        Args:
            env: whose steps they are.
            kind: what a vector holds of them.

        Raises:
            UserError: it shows images, or its actions are neither numbers nor choices.
        """
        shape = env.observation_space.shape or ()
        if len(shape) != 1:
            raise UserError(
                f"{env.id} shows images of shape {shape}; the reward model learns from "
                "observations that are vectors"
            )
        self._sizes, self._first = _choices(env.action_space)
        self.kind = kind
        self._action_shape = tuple(env.action_space.shape or ())
        actions = int(self._sizes.sum()) or int(np.prod(self._action_shape))
        self.width = {
            "state": shape[0],
            "state-action": shape[0] + actions,
            "transition": 2 * shape[0] + actions,
        }[self.kind]

    @property
    def left_out(self) -> int:
        """Steps at a segment's end of which too little is known: 1 for transitions, else 0."""
        return int(self.kind == "transition")

    def __call__(
        self, observation: np.ndarray, action: np.ndarray, following: np.ndarray | None = None
    ) -> np.ndarray:
        """Vectors of steps.

        Args:
            observation: (..., O).
            action: (..., *action), as the environment took them.
            following: (..., O), the observation after each step; needed for transitions.

        Returns:
            (..., D) float32.
        """
        lead = observation.shape[:-1]
        parts = [observation]
        if self.kind != "state":
            parts.append(self._encoded(action.reshape(*lead, *self._action_shape), lead))
        if self.kind == "transition":
            assert following is not None
            parts.append(following)
        return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=-1)

    def of_segment(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Vectors of a segment's steps, (T, D).

        A segment does not have the observation after its last step, so of transitions that step
        is left out.
        """
        if self.left_out:
            return self(observation[:-1], action[:-1], observation[1:])
        return self(observation, action)

    def _encoded(self, action: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
        if not self._sizes.size:
            return action.reshape(*lead, -1)
        chosen = action.reshape(*lead, -1) - self._first
        hot = [np.arange(n) == chosen[..., i : i + 1] for i, n in enumerate(self._sizes)]
        return np.concatenate(hot, axis=-1)


def _choices(space: gym.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """How many choices each component of an action has, and the first of them; none for numbers."""
    if isinstance(space, gym.spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.nvec.ravel(), space.start.ravel()
    if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    raise UserError(f"the reward model cannot learn from actions of the space {space}")
