"""What learning from comparisons costs: the loop over plain training, and one fit to 1,400 labels.

    python benchmarks/prefer.py
    python benchmarks/prefer.py --env Hopper-v5 --steps 1000000 --repeats 3

The loop is measured against `--learn-from reward`, which is the same training on the true reward in
the same task, in turns, each in a process of its own. Wall clock is what a user waits for;
processor time is what is left of it on a machine that others use too. Both leave out the start of
the process. The share that a long training pays is also given for a million steps, as the reward
model's refits cost the same however long the training is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from contenders import ROOT
from report import machine, versions

from tether.control import configure_jax

LABELS = 1400


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--env", default="HalfCheetah-v5")
    add("--steps", type=int, default=1_000_000, help="of each training")
    add("--labels", type=int, default=700)
    add("--repeats", type=int, default=3, help="turns (default: 3)")
    add("--out", type=Path, default=ROOT / "results" / "prefer.json")
    add("--one", choices=("reward", "comparisons"), help=argparse.SUPPRESS)
    return parser.parse_args()


def one(env: str, steps: int, labels: int, learn_from: str) -> dict[str, float]:
    """One training, in this process."""
    import tether
    from tether.learning import BaseCallback

    class Clock(BaseCallback):
        began = (0.0, 0.0)

        def on_start(self, run: Any, learner: Any) -> None:
            self.began = (time.perf_counter(), time.process_time())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        tether.train(
            "prefer",
            env=env,
            labels=labels,
            learn_from=learn_from,
            total_steps=steps,
            out=Path(folder) / "run",
            callbacks=[clock],
            progress=False,
            sinks=(),
        )
        wall, processor = time.perf_counter() - clock.began[0], time.process_time() - clock.began[1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall": wall, "processor": processor, "memory_mb": memory}


def fit(env: str, steps: int = 440) -> dict[str, float]:
    """A fit from nothing to 1,400 comparisons of the untrained policy: ten passes."""
    from tether.control.envs import make
    from tether.control.preferences.learner import Prefer
    from tether.control.preferences.reward_model import RewardModel
    from tether.control.training import configure

    config: Any = configure("prefer", settings={"labels": LABELS, "first_labels": 1.0})
    world = make(env, config.policy.num_envs)
    learner = Prefer(config, world, seed=1000, total_steps=1_000_000)
    while learner.steps < learner.schedule.begin:
        learner.iterate()
    learner._ask_teacher(LABELS)
    steps_compared = learner.data.inputs.reshape(-1, learner.data.inputs.shape[-1])[:20_000]
    seconds, processor = [], []
    for _ in range(4):
        model = RewardModel(
            config.reward_settings, steps_compared.shape[1], np.random.default_rng(0)
        )
        model.watch(steps_compared)
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = model.fit(learner.data, steps, np.random.default_rng(1))
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
    learner.close()
    return {
        "comparisons": len(learner.data),
        "segment_steps": learner.data.inputs.shape[2],
        "gradient_steps": steps,
        "first_seconds_with_compilation": seconds[0],
        "seconds": median(seconds[1:]),
        "processor_seconds": median(processor[1:]),
        **{name: float(value) for name, value in metrics.items()},
    }


def main() -> None:
    args = parse()
    configure_jax()
    if args.one:
        print(json.dumps(one(args.env, args.steps, args.labels, args.one)))
        return
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "load": os.getloadavg(),
        "env": args.env,
        "steps": args.steps,
        "labels": args.labels,
        "fit": fit(args.env),
        "trainings": {"reward": [], "comparisons": []},
    }
    print(json.dumps(found["fit"]), file=sys.stderr, flush=True)
    for _ in range(args.repeats):
        for kind, results in found["trainings"].items():
            command = [sys.executable, __file__, "--one", kind, "--env", args.env]
            command += ["--steps", str(args.steps), "--labels", str(args.labels)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(kind, results[-1], file=sys.stderr, flush=True)
    for clock in ("wall", "processor"):
        plain, learned = (
            median(result[clock] for result in found["trainings"][kind])
            for kind in ("reward", "comparisons")
        )
        found[f"overhead_{clock}"] = learned / plain - 1
        more = (learned - plain) / (plain * 1_000_000 / args.steps)
        found[f"overhead_{clock}_of_a_million_steps_at_most"] = more
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if "overhead" in name}))


if __name__ == "__main__":
    main()
