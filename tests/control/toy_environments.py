"""Environments whose best policy, returns and faults are known. Registers ids on import."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Copy(gym.Env):
    """Shows a target and pays for the action that equals it; every episode lasts 16 steps.

    The reward of a step is at most 1: the share of components that are right, or for a Box 1 minus
    the mean distance. `show` says how the target is shown: "vector" (flat numbers), "dict" (beside
    noise that means nothing) or "image" (one bright square for each choice of a Discrete).
    """

    def __init__(self, action_space: gym.Space, show: str = "vector"):
        self.action_space = action_space
        self.show = show
        flat = spaces.flatten_space(action_space)
        vector = spaces.Box(-1.0, 1.0, flat.shape, np.float32)
        self.observation_space = {
            "vector": vector,
            "dict": spaces.Dict({"noise": spaces.Box(-1, 1, (2,)), "target": vector}),
            "image": spaces.Box(0, 255, (8, 8, 1), np.uint8),
        }[show]

    def see(self):
        # A space's own generator is seeded from the episode's, so that a seed decides everything.
        self.action_space.seed(int(self.np_random.integers(2**31)))
        self.target = self.action_space.sample()
        flat = np.asarray(spaces.flatten(self.action_space, self.target), np.float32)
        if self.show == "dict":
            return {"noise": self.np_random.uniform(-1, 1, 2).astype(np.float32), "target": flat}
        if self.show == "image":
            image = np.zeros((8, 8, 1), np.uint8)
            row, column = divmod(int(flat.argmax()), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
            return image
        return flat

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 16
        return self.see(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        if isinstance(self.action_space, spaces.Box):
            reward = 1.0 - float(np.abs(action - self.target).mean())
        else:
            reward = float(np.mean(action == self.target))
        self.left -= 1
        return self.see(), reward, False, self.left == 0, {}


class Script(gym.Env):
    """Episodes of random length that end as `endings` says in turn; keeps a diary of every step.

    Endings are "terminated", "truncated" or "both". A diary entry is (observation, reward,
    terminated, truncated, next observation): the truth a rollout must agree with.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, endings=("terminated", "truncated", "both"), longest=5):
        self.endings = endings
        self.longest = longest
        self.episode = -1
        self.diary = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.left = int(self.np_random.integers(1, self.longest + 1))
        self.now = self.np_random.normal(size=3) * 3 + 1
        return self.now, {}

    def step(self, action):
        self.left -= 1
        ending = self.endings[self.episode % len(self.endings)] if self.left == 0 else ""
        before, self.now = self.now, self.np_random.normal(size=3) * 3 + 1
        reward = float(self.np_random.normal() + action)
        terminated, truncated = ending in ("terminated", "both"), ending in ("truncated", "both")
        self.diary.append((before, reward, terminated, truncated, self.now))
        return self.now, reward, terminated, truncated, {}


class Faulty(gym.Env):
    """Breaks at its k-th step: `fault` names what, `value` how; episodes are `length` long."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault="reward", value=float("nan"), at=70, length=10):
        self.fault, self.value, self.at, self.length = fault, value, at, length
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.left -= 1
        observation, reward = np.ones(2, np.float32), 1.0
        if self.steps == self.at:
            if self.fault == "crash":
                raise RuntimeError("the robot fell off the table")
            if self.fault == "reward":
                reward = self.value
            else:
                observation[1] = self.value
        return observation, reward, False, self.left == 0, {}


class CopyDict(Copy):
    """A Dict observation and a MultiDiscrete action, to be made by id."""

    def __init__(self):
        super().__init__(spaces.MultiDiscrete([3, 2]), "dict")


gym.register("CopyDict-v0", entry_point=CopyDict)
gym.register("Faulty-v0", entry_point=Faulty)


class Reach(gym.Env):
    """Pays minus the squared distance between the action and a fixed target; 16 steps each.

    Its bounds, [0, 1] and [-5, 10], are the units of two quantities that are measured differently.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(np.array([0.0, -5.0]), np.array([1.0, 10.0]), dtype=np.float64)
    target = np.array([0.8, 7.0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 16
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        reward = -float(((action - self.target) ** 2).sum())
        return np.zeros(2, np.float32), reward, False, self.left == 0, {}


gym.register("Reach-v0", entry_point=Reach)
