"""Small environments of many kinds, honest and not. Registers ``Countdown-v0`` on import."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Scripted(gym.Env):
    """Noise observations from the episode's generator; episodes last as long as it draws."""

    def __init__(self, observation_space, action_space=None, length=9):
        self.observation_space = observation_space
        self.action_space = action_space if action_space is not None else spaces.Discrete(3)
        self.length = length

    def draw(self):
        # A fresh space per draw, seeded from the generator, so that sampling is reproducible.
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, self.length + 1))
        return self.draw(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        reward = float(np.sum(action) + self.np_random.normal())
        return self.draw(), reward, self.left == 0, False, {}


class Countdown(gym.Env):
    """Shows what is left, as a Dict; ends at zero. The action is ignored."""

    def __init__(self, start=5):
        self.start = start
        self.observation_space = spaces.Dict(
            {"left": spaces.Discrete(20), "half": spaces.Box(0, 10, (1,))}
        )
        self.action_space = spaces.Discrete(2, start=3)

    def see(self):
        return {"left": self.left, "half": np.array([self.left / 2], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.start
        return self.see(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        return self.see(), 1.0, self.left == 0, False, {}


class Camera(Scripted):
    """Images (H, W, C), or grey (H, W)."""

    def __init__(self, shape=(6, 5, 3)):
        super().__init__(spaces.Box(0, 255, shape, np.uint8))


class Liar(gym.Env):
    """Promises a float32 vector of two numbers; gives what it is told to."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    honest = np.zeros(2, np.float32)

    def __init__(self, reset=None, step=None):
        self.at_reset = reset if reset is not None else (self.honest, {})
        self.at_step = step if step is not None else (self.honest, 0.0, False, False, {})

    def reset(self, *, seed=None, options=None):
        return self.at_reset

    def step(self, action):
        return self.at_step


class Scribbler(Scripted):
    """Writes into the action it is given, and reuses one observation array."""

    def __init__(self):
        super().__init__(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)))
        self.array = np.zeros(2, np.float32)

    def draw(self):
        self.array[...] = super().draw()
        return self.array

    def step(self, action):
        outcome = super().step(action)
        action[...] = 7
        return outcome


class Unseeded(Scripted):
    """Ignores the seed it is given."""

    def __init__(self):
        super().__init__(spaces.Box(-1, 1, (2,)), length=50)

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


gym.register("Countdown-v0", entry_point=Countdown, max_episode_steps=3)
