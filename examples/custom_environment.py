"""Train in an environment of your own, handed over as a factory.

Try: python examples/custom_environment.py --steps 40960
"""

import argparse
from typing import Any

import gymnasium
import numpy as np

import tether


class Homing(gymnasium.Env[Any, Any]):
    """Start somewhere on a line and get to the origin within 25 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)  # every draw comes from np_random, so runs resume bit for bit
        self.x, self.clock = self.np_random.uniform(-2.0, 2.0), 0
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> Any:
        self.x, self.clock = self.x + 0.2 * (int(action) - 1), self.clock + 1
        # Leaving the line is a failure (terminated); the clock is no part of the task (truncated).
        return np.array([self.x], np.float32), -abs(self.x), abs(self.x) > 4, self.clock == 25, {}


parser = argparse.ArgumentParser(description="Train in an environment of your own.")
parser.add_argument("--steps", type=int, default=40_960)
trained = tether.train("ppo", env=Homing, total_steps=parser.parse_args().steps, num_envs=8)
result = tether.evaluate_run(trained.run, env=Homing, episodes=20).summary()
print(f"return {result['return_mean']:.2f} over {result['episodes']} episodes (at first: -27)")
