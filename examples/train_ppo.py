"""Train PPO, load the policy from its run folder, and act with it.

Try: python examples/train_ppo.py --steps 4096
"""

import argparse

import gymnasium
import numpy as np

import tether

parser = argparse.ArgumentParser(description="Train PPO, load the policy, act with it.")
parser.add_argument("--env", default="Hopper-v5")
parser.add_argument("--steps", type=int, default=300_000)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

trained = tether.train(
    "ppo", env=arguments.env, total_steps=arguments.steps, seed=arguments.seed, epsilon=0.2
)
print(f"{trained.steps} steps in {trained.seconds:.1f} s; run: {trained.run}")

# The folder is all a policy needs: normalization included, no environment, no JAX.
policy = tether.load(trained.run)
env = gymnasium.make(arguments.env)
observation, _ = env.reset(seed=1_000)
score, over = 0.0, False
while not over:
    observation, reward, terminated, truncated, _ = env.step(policy.predict(observation))
    score, over = score + float(reward), terminated or truncated
print(f"return of one deterministic episode: {score:.1f}")

# Stochastic actions draw their noise from a generator of yours.
print(policy.predict(observation, deterministic=False, rng=np.random.default_rng(0)))
