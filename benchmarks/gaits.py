"""What separates HalfCheetah's gaits: curves, noise, and the trunk's angle of trained policies.

    python benchmarks/gaits.py --group "log deviation 0" runs/default/* \\
        --group "log deviation -0.5" runs/lower/* --out gaits.png

prints a line for each run, and draws the return against the steps and against the noise.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gymnasium
import matplotlib
import numpy as np

import tether
from tether.learning.output.metrics import read_metrics
from tether.learning.reports.plots import COLOURS

matplotlib.use("Agg")
from matplotlib import pyplot

ACTIONS = 6
TICKS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)
NOISELESS = 0.5 * math.log(2 * math.pi * math.e)


def deviation(entropy: np.ndarray) -> np.ndarray:
    """Geometric mean of the actions' standard deviations, from a diagonal Gaussian's entropy."""
    return np.exp(entropy / ACTIONS - NOISELESS)


def gait(run: str, steps: int = 1000) -> dict[str, float]:
    """How the most probable actions carry the trunk through one episode."""
    policy = tether.load(run)
    env = gymnasium.make("HalfCheetah-v5")
    observation, _ = env.reset(seed=5_000_000)
    data, total, pitch, at_bound = env.unwrapped.data, 0.0, [], []
    for _ in range(steps):
        action = policy.predict(observation)
        at_bound.append(np.abs(action) >= 1)
        observation, reward, *_ = env.step(action)
        total += float(reward)
        pitch.append(data.qpos[2])
    angle = np.array(pitch)
    return {
        "return": round(total),
        "pitch, rad": round(float(angle.mean()), 2),
        "its deviation": round(float(angle.std()), 2),
        "upside down": round(float((np.cos(angle) < 0).mean()), 2),
        "actions at a bound": round(float(np.mean(at_bound)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--group",
        action="append",
        nargs="+",
        required=True,
        metavar=("LABEL", "RUN"),
        help="runs of one colour",
    )
    parser.add_argument("--out", type=Path, default=Path("gaits.png"))
    arguments = parser.parse_args()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for (label, *runs), colour in zip(arguments.group, COLOURS, strict=False):
        for place, run in enumerate(runs):
            print(label, Path(run).name, gait(run))
            rows = [
                row
                for row in read_metrics(Path(run) / "metrics.jsonl")
                if row.get("return/mean") is not None
            ]
            step, mean, entropy = (
                np.array([row[name] for row in rows], float)
                for name in ("step", "return/mean", "policy/entropy")
            )
            style = {"color": colour, "linewidth": 1, "label": None if place else label}
            left.plot(step, mean, **style)
            right.plot(deviation(entropy), mean, **style)
    left.set(xlabel="environment steps", ylabel="return while training (last 100 episodes)")
    right.set(xlabel="standard deviation of the actions", xscale="log")
    right.set_xticks(TICKS, [str(tick) for tick in TICKS])
    right.minorticks_off()
    right.invert_xaxis()
    left.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
