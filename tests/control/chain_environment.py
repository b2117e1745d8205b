"""A corridor of five states whose best policy, returns and action values are known by hand."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

FORWARD = (0, 1, 1, 0, 1)
"""The action that leads on, state by state: nobody gets through with one action for all."""
STEP, GOAL, LIMIT = -0.1, 1.0, 20
BEST = 4 * STEP + GOAL
"""Return of the best policy: four steps that cost, and the fifth that reaches the goal."""


class Chain(gym.Env):
    """Starts at state 0; the right action leads on, the other back; beyond state 4 is the goal."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.left = 0, LIMIT
        return self.state, {}

    def step(self, action):
        self.left -= 1
        if action == FORWARD[self.state]:
            if self.state == 4:
                return self.state, GOAL, True, False, {}
            self.state += 1
        else:
            self.state = max(0, self.state - 1)
        return self.state, STEP, False, self.left == 0, {}


def best_values(gamma: float) -> np.ndarray:
    """Q*(s, forward) of the five states."""
    ahead = np.arange(4, -1, -1)
    return np.array([sum(STEP * gamma**k for k in range(n)) + GOAL * gamma**n for n in ahead])
