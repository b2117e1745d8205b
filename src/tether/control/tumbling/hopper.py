"""A hopper that may turn over."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from numpy.typing import NDArray


def within_a_turn(angle: Any) -> Any:
    """The same direction within [-pi, pi), in radians; any shape."""
    return np.mod(angle + np.pi, 2 * np.pi) - np.pi


class TumblingHopper(HopperEnv):
    """Hopper-v5 whose torso may turn any number of times, and whose falls end no episode.

    Hopper-v5 observes how far its torso has turned since the beginning, so that standing after a
    somersault looks unlike standing before it, and what was learned of the one is no use for the
    other. Here the observation has the direction in which the torso points, within [-pi, pi).

    Rewards, actions and the other observations are Hopper-v5's; episodes are cut after 1000 steps
    of 0.008 s.

    Args:
        **kwargs: of Hopper-v5, but for terminate_when_unhealthy.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(terminate_when_unhealthy=False, **kwargs)

    @property
    def angle_index(self) -> int:
        """Where the observation has the torso's angle."""
        return 1 if self._exclude_current_positions_from_observation else 2

    def _get_obs(self) -> NDArray[np.float64]:
        observation: NDArray[np.float64] = super()._get_obs()  # type: ignore[no-untyped-call]
        observation[self.angle_index] = within_a_turn(observation[self.angle_index])
        return observation
