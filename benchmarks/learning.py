"""How well the default preset learns: several seeds, deterministic evaluation, figure and table.

    python benchmarks/learning.py                      # HalfCheetah-v5, 3 seeds, 1M steps
    python benchmarks/learning.py --envs Hopper-v5 Walker2d-v5 --method ppo
    python benchmarks/learning.py --sequential         # also one seed after the other: the factor

Runs are kept under --runs and resumed, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tether.control import configure_jax
from tether.control.training import ENGINE, evaluate_run
from tether.learning.reports.plots import learning_curves
from tether.learning.run import Run
from tether.learning.seeds import is_seeds_folder, resume_seeds, train_seeds


def main() -> None:
    arguments = _arguments()
    configure_jax()
    results: dict[str, Any] = {
        "command": "python benchmarks/learning.py " + " ".join(sys.argv[1:]),
        "versions": {name: version(name) for name in ("tether-rl", "jax", "mujoco", "gymnasium")},
        "python": platform.python_version(),
        "steps": arguments.steps,
        "environments": {},
    }
    folders: list[Path] = []
    for env in arguments.envs:
        folder = arguments.runs / f"{arguments.method}-{env}"
        seconds = _train(arguments, env, folder)
        row = _evaluate(arguments, folder)
        row["seconds_together"] = seconds
        if arguments.sequential:
            row["seconds_one_after_the_other"] = _sequential(arguments, env)
            row["factor"] = row["seconds_one_after_the_other"] / seconds if seconds else None
        results["environments"][env] = row
        folders += [folder / f"seed-{seed}" for seed in arguments.seeds]
        print(
            f"{env:28} {row['mean']:8.1f}  seeds {[round(s, 1) for s in row['seeds'].values()]}"
            + (f"  together {seconds:.0f} s" if seconds else "")
            + (f"  factor {row['factor']:.2f}" if row.get("factor") else ""),
            flush=True,
        )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    learning_curves(folders, arguments.plot, by="env")


def _train(arguments: argparse.Namespace, env: str, folder: Path) -> float | None:
    """Train all seeds in one process, start-up included; None when they were already there."""
    missing = [s for s in arguments.seeds if not (folder / f"seed-{s}" / "run.json").exists()]
    for seed in set(arguments.seeds) - set(missing):
        command = [*_TETHER, "resume", str(folder / f"seed-{seed}"), "--quiet"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    if not missing:
        return None
    start = time.perf_counter()
    if len(missing) < len(arguments.seeds):
        if is_seeds_folder(folder):
            resume_seeds(ENGINE, folder, total_steps=arguments.steps, progress=False)
        else:
            train_seeds(
                ENGINE,
                arguments.method,
                missing,
                env=env,
                total_steps=arguments.steps,
                out=folder,
                progress=False,
            )
        return None
    command = [*_TETHER, "train", arguments.method, "--env", env, "--quiet"]
    command += ["--seeds", ",".join(map(str, missing)), "--total-steps", str(arguments.steps)]
    subprocess.run([*command, "--out", str(folder)], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def _sequential(arguments: argparse.Namespace, env: str) -> float:
    """Seconds for the same seeds as one command after the other."""
    start = time.perf_counter()
    for seed in arguments.seeds:
        command = [
            *_TETHER,
            "train",
            arguments.method,
            "--env",
            env,
            "--quiet",
            "--seed",
            str(seed),
        ]
        out = arguments.runs / f"sequential-{env}-{seed}-{int(start)}"
        command += ["--quiet", "--total-steps", str(arguments.steps), "--out", str(out)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def _evaluate(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    seeds = {}
    for seed in arguments.seeds:
        run = folder / f"seed-{seed}"
        seeds[str(seed)] = float(evaluate_run(run, episodes=arguments.episodes).returns.mean())
    values = np.array(list(seeds.values()))
    return {
        "config": Run.open(folder / f"seed-{arguments.seeds[0]}").config,
        "episodes": arguments.episodes,
        "seeds": seeds,
        "mean": float(values.mean()),
        "std": float(values.std()),
    }


_TETHER = [sys.executable, "-m", "tether"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5"])
    parser.add_argument("--method", default="ppo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--out", type=Path, default=Path("results/learning.json"))
    parser.add_argument("--plot", type=Path, default=Path("runs/learning/curves.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
