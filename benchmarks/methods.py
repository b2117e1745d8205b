"""How fast each method trains, next to the ceiling: the same physics driven by a policy alone.

    python benchmarks/methods.py
    python benchmarks/methods.py --env Hopper-v5 --methods trpo vpg --repeats 1

Every method at its default settings, in a process of its own, one at a time; then the ceiling, with
16 simulations and with as many as the method has environments. Rates leave out the first iteration,
which compiles. `actor-critic` updates after every single step, so its ceiling is the updates
themselves; behaviour cloning steps no environment at all and is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from contenders import CEILING_SIMS, ROOT, run, run_ceiling, steady
from report import machine, versions

METHODS = ("reinforce", "vpg", "a2c", "a2c-tr", "trpo", "ppo", "ppo-kl", "cem", "actor-critic")
ITERATIONS = 4
"""At least so many after the first."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--env", default="HalfCheetah-v5", choices=("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    add("--steps", type=int, default=163_840, help="about, of each training")
    add("--repeats", type=int, default=3, help="turns (default: 3)")
    add("--ceiling-seconds", type=float, default=2.0, help="per ceiling measured")
    add("--out", type=Path, default=ROOT / "results" / "methods.json")
    args = parser.parse_args()
    for name in ("steps", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; expected at least 1")
    return args


def train(method: str, env: str, steps: int, seed: int) -> dict[str, Any]:
    """A method's training through the command line, with its settings."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "tether", "train", method, "--env", env]
        command += ["--total-steps", str(steps), "--seed", str(seed), "--out", str(out)]
        result = steady(run([*command, "--json", "--quiet"]))
        result["settings"] = json.loads((out / "run.json").read_text())["config"]
    del result["run"]
    return result


def budget(method: str, steps: int) -> int:
    """Whole generations are few and large; an update at every step is slow."""
    if method == "cem":
        return max(steps, 64_000 * (1 + ITERATIONS))
    return steps // 8 if method == "actor-critic" else steps


def main() -> None:
    args = parse()
    results: dict[str, Any] = {
        "title": f"Methods on {args.env}: environment steps per second of training",
        "command": " ".join(["python", "benchmarks/methods.py", *sys.argv[1:]]),
        "rate": "(steps - the first iteration's) / (seconds - the first iteration's)",
        "machine": machine(),
        "versions": versions(),
        "methods": {},
    }
    turns: dict[str, list[dict[str, Any]]] = {method: [] for method in args.methods}
    for turn in range(args.repeats):
        for method in args.methods:
            result = train(method, args.env, budget(method, args.steps), turn)
            sims = int(result["settings"].get("num_envs", result["settings"].get("population", 1)))
            ceilings = run_ceiling(args.env, args.ceiling_seconds, turn, sims)
            result["ceiling"] = ceilings["ceiling"]["rate"]
            result["ceiling_own"] = ceilings.get("ceiling_own", ceilings["ceiling"])["rate"]
            turns[method].append(result)
            print(
                f"turn {turn + 1} {method:13}{result['rate']:10,.0f} steps/s"
                f"{result['rate'] / result['ceiling']:7.2f} of {CEILING_SIMS} simulations"
                f"{result['rate'] / result['ceiling_own']:7.2f} of {sims}",
                flush=True,
            )
        results["methods"] = {m: summary(of) for m, of in turns.items() if of}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the turns of rates, and of their shares in the ceilings of the same turn."""
    return {
        "rate": median(t["rate"] for t in turns),
        "of_ceiling": median(t["rate"] / t["ceiling"] for t in turns),
        "of_own_ceiling": median(t["rate"] / t["ceiling_own"] for t in turns),
        "peak_memory_mb": max(t["peak_memory_mb"] for t in turns),
        "settings": turns[0]["settings"],
        "turns": [{k: v for k, v in t.items() if k != "settings"} for t in turns],
    }


if __name__ == "__main__":
    main()
