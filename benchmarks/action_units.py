"""PPO in a box whose bounds are far from ±1, with and without actions in units of the bounds.

    python benchmarks/action_units.py [--steps 30000] [--seeds 1000 1001]

The environment has the action bounds [0, 1] × [−5, 10], one observation that never changes, and
the reward −‖a − target‖². Printed is the mean reward a step of the most probable action, for
targets near the bounds and inside them; the best is 0.
"""

import argparse
import tempfile
from pathlib import Path

import gymnasium
import numpy as np

import tether

LOW, HIGH = np.array([0.0, -5.0], np.float32), np.array([1.0, 10.0], np.float32)


class Reach(gymnasium.Env):
    """Reward −‖a − target‖² for ten steps, whatever happened before."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(LOW, HIGH)

    def __init__(self, target):
        self.target = np.array(target)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        reward = -float(np.sum((np.asarray(action) - self.target) ** 2))
        return np.zeros(1, np.float32), reward, False, self.left == 0, {}


def reward_after(target, steps, seed, **settings):
    """Mean reward a step of the most probable action after training."""
    with tempfile.TemporaryDirectory() as folder:
        trained = tether.train(
            "ppo",
            env=lambda: Reach(target),
            total_steps=steps,
            seed=seed,
            out=Path(folder) / "run",
            sinks=(),
            progress=False,
            **settings,
        )
        action = trained.policy.predict(np.zeros(1, np.float32), deterministic=True)
    return -float(np.sum((action - np.array(target)) ** 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 1001])
    arguments = parser.parse_args()
    print("target        initial log deviation   in units of the bounds   as they are")
    for target in ((0.3, 1.0), (0.3, 4.0), (0.7, 7.0), (0.9, 9.5)):
        for deviation in (0.0, -0.5, -1.0):
            scores = [
                np.mean(
                    [
                        reward_after(
                            target,
                            arguments.steps,
                            seed,
                            scale_actions=scaled,
                            initial_log_std=deviation,
                        )
                        for seed in arguments.seeds
                    ]
                )
                for scaled in (True, False)
            ]
            print(f"{target!s:14}{deviation:18.1f}{scores[0]:24.2f}{scores[1]:15.2f}", flush=True)


if __name__ == "__main__":
    main()
