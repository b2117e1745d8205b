"""PPO of a peer at the settings of tether's `paper` preset; run with the peers' own Python.

    python benchmarks/peer_ppo.py --peer sb3 --env Hopper-v5 --num-envs 16 --total-steps 22528

Prints one JSON object with the keys of ``tether train --json``. The peer gets what helps it:
no environment checker, no logging, a chosen number of environments, threads and processes, and
its compilation outside the window that is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SETTINGS = {
    "steps_per_iteration": 2048,
    "epochs": 10,
    "minibatch_size": 64,
    "learning_rate": 3e-4,
    "anneal": True,
    "adam_epsilon": 1e-5,
    "gamma": 0.99,
    "lam": 0.95,
    "epsilon": 0.2,
    "entropy_coefficient": 0.0,
    "max_grad_norm": 0.5,
    "hidden": [64, 64],
    "activation": "tanh",
    "initial_log_std": 0.0,
    "normalize_observation": True,
    "normalize_reward": True,
}
PACKAGES = ("gymnasium", "jax", "jaxlib", "mujoco", "numpy", "sbx-rl", "stable_baselines3", "torch")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("sb3", "sbx"), required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--processes", action="store_true", help="SubprocVecEnv")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of XLA")
    parser.add_argument("--total-steps", type=int, default=22528)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if SETTINGS["steps_per_iteration"] % args.num_envs:
        parser.error(f"--num-envs is {args.num_envs}; expected a divisor of 2048")
    return args


def limit_threads(threads: int) -> None:
    """Give the numerical libraries this many threads; only works before they are imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = flags
    import torch

    torch.set_num_threads(threads)


def make_environments(args: argparse.Namespace) -> Any:
    """N environments under the normalization of the paper's settings."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    environments = make_vec_env(
        args.env,
        n_envs=args.num_envs,
        seed=args.seed,
        vec_env_cls=SubprocVecEnv if args.processes else DummyVecEnv,
        env_kwargs={"disable_env_checker": True},
    )
    return VecNormalize(environments, gamma=SETTINGS["gamma"], clip_obs=10.0, clip_reward=10.0)


def make_learner(args: argparse.Namespace, environments: Any) -> Any:
    """The peer's PPO."""
    rate = SETTINGS["learning_rate"]
    policy: dict[str, Any] = {
        "net_arch": {"pi": SETTINGS["hidden"], "vf": SETTINGS["hidden"]},
        "log_std_init": SETTINGS["initial_log_std"],
        "ortho_init": True,
        # The default of both; said aloud because it is one of the settings.
        "optimizer_kwargs": {"eps": SETTINGS["adam_epsilon"]},
    }
    if args.peer == "sb3":
        from stable_baselines3 import PPO
        from torch import nn

        policy["activation_fn"] = nn.Tanh
    else:
        from flax import linen
        from sbx import PPO

        policy["activation_fn"] = linen.tanh
    learner = PPO(
        "MlpPolicy",
        environments,
        learning_rate=lambda remaining: rate * remaining,
        n_steps=SETTINGS["steps_per_iteration"] // args.num_envs,
        batch_size=SETTINGS["minibatch_size"],
        n_epochs=SETTINGS["epochs"],
        gamma=SETTINGS["gamma"],
        gae_lambda=SETTINGS["lam"],
        clip_range=SETTINGS["epsilon"],
        clip_range_vf=None,
        ent_coef=SETTINGS["entropy_coefficient"],
        max_grad_norm=SETTINGS["max_grad_norm"],
        policy_kwargs=policy,
        seed=args.seed,
        device="cpu",
        verbose=0,
    )
    if args.peer == "sbx":
        # The value of a truncated episode's end has a shape of its own, which would otherwise be
        # compiled in the middle of the timed window.
        import numpy as np

        last = np.zeros((1, *environments.observation_space.shape), np.float32)
        learner.vf.apply(learner.policy.vf_state.params, last)
    return learner


def train(learner: Any, total_steps: int) -> dict[str, Any]:
    """Train and note when the loop began, when its first iteration ended and when all was done."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.marks: list[float] = []

        def _on_rollout_start(self) -> None:
            if len(self.marks) < 2:
                self.marks.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    clock = Clock()
    learner.learn(total_steps, callback=clock, log_interval=None)
    end = time.perf_counter()
    begun, *later = clock.marks
    return {
        "steps": learner.num_timesteps,
        "seconds": end - begun,
        "steps_per_second": learner.num_timesteps / (end - begun),
        "first_iteration_seconds": (later[0] if later else end) - begun,
        "steps_per_iteration": SETTINGS["steps_per_iteration"],
    }


def gradient_steps(learner: Any) -> int:
    """How often the peer's own optimizer says it moved the policy."""
    policy = learner.policy
    if hasattr(policy, "actor_state"):
        return int(policy.actor_state.step)
    return int(next(iter(policy.optimizer.state.values()))["step"])


def resident_peak_mb(environments: Any) -> float:
    """Peak memory of this process and of the environments' processes, in megabytes."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for process in getattr(environments.venv, "processes", ()):
        status = Path(f"/proc/{process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        kilobytes += int(line.split()[1])
    return kilobytes / 1024


def main() -> None:
    args = parse()
    limit_threads(args.threads)
    import numpy as np

    environments = make_environments(args)
    learner = make_learner(args, environments)
    result = train(learner, args.total_steps)
    returns = [episode["r"] for episode in learner.ep_info_buffer]
    result |= {
        "return_mean": float(np.mean(returns)) if returns else None,
        "return_std": float(np.std(returns)) if returns else None,
        "episodes": len(returns),
        "gradient_steps": gradient_steps(learner),
        "peak_memory_mb": resident_peak_mb(environments),
        "settings": SETTINGS,
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in PACKAGES},
    }
    environments.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
