"""How fast tether trains beside an earlier checkout of itself; one run, medians of paired turns.

    git worktree add --detach ../before COMMIT
    python benchmarks/before_after.py ../before
    python benchmarks/before_after.py ../before --turns 1 --language dpo sft rlhf generate

PPO on the tasks of throughput.py and the jobs of language.py, at those settings, each in a process
of its own: one checkout, then the other, and the one that begins changes with every turn. A ratio
above 1 means that this checkout is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from contenders import ROOT, ContenderError, run, run_tether
from language import METHODS, Bench
from throughput import ENVS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("before", type=Path, help="folder of the earlier checkout")
    add("--envs", nargs="*", choices=ENVS, default=list(ENVS), help="default: all three")
    add("--language", nargs="*", choices=METHODS, default=["dpo", "sft", "rlhf", "generate"])
    add("--steps", type=int, default=163_840, help="of PPO (default: 163,840)")
    add("--turns", type=int, default=3, help="of each checkout (default: 3)")
    args = parser.parse_args()
    if not (args.before / "src" / "tether").is_dir():
        parser.error(f"{args.before} is no checkout of tether; give the folder of one")
    return args


def code_of(checkout: Path) -> dict[str, str]:
    """What makes a process import a checkout's own code."""
    return {"PYTHONPATH": str(checkout.resolve() / "src")}


def policy_rate(checkout: Path, env: str, steps: int, seed: int) -> float:
    """Environment steps per second after the first iteration."""
    return float(run_tether(env, steps, seed, code_of(checkout))["rate"])


def language_rate(checkout: Path, bench: Bench, method: str, seed: int) -> float:
    """Units of language.py per second after the first step."""
    script = checkout.resolve() / "benchmarks" / "language_tether.py"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(bench.job(method, bench.settings(method), {}, seed)))
        result = run([sys.executable, str(script), str(path)], environment=code_of(checkout))
    return float(sum(result["units"][1:]) / (result["marks"][-1] - result["marks"][1]))


def main() -> None:
    args = parse()
    sides = {"before": args.before, "now": ROOT}
    jobs: dict[str, Any] = {
        env: lambda side, turn, env=env: policy_rate(side, env, args.steps, turn)
        for env in args.envs
    }
    if args.language:
        bench = Bench(
            Namespace(
                model="smollm2-135m-instruct",
                device="cpu",
                dtype="float32",
                size="laptop",
                threads=0,
            )
        )
        jobs |= {
            method: lambda side, turn, method=method: language_rate(side, bench, method, turn)
            for method in args.language
        }
    rates: dict[str, dict[str, list[float]]] = {job: {s: [] for s in sides} for job in jobs}
    for turn in range(args.turns):
        for job, measure in jobs.items():
            for side in list(sides) if turn % 2 == 0 else reversed(sides):
                rate = measure(sides[side], turn)
                rates[job][side].append(rate)
                print(f"turn {turn + 1}  {job:16} {side:7} {rate:12,.2f}/s", flush=True)
    print(f"\n{'':18}{'before':>12}{'now':>12}   ratio (each turn)")
    for job, found in rates.items():
        pairs = [now / before for before, now in zip(found["before"], found["now"], strict=True)]
        each = ", ".join(f"{pair:.2f}" for pair in pairs)
        before, now = median(found["before"]), median(found["now"])
        print(f"{job:18}{before:12,.2f}{now:12,.2f}   {now / before:.2f} ({each})")


if __name__ == "__main__":
    try:
        main()
    except ContenderError as error:
        sys.exit(f"error: {error}")
