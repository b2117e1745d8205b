"""How fast tether trains, next to its peers and to the ceiling; one run, one table.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --envs Hopper-v5 --repeats 1 --peers-python PATH

Every contender runs in a process of its own, one at a time, at equal settings: iterations of 2048
transitions, 10 epochs, minibatches of 64, Adam 3e-4 annealed to zero, separate 64x64 tanh networks,
clip 0.2, observations and rewards normalized. A short round first chooses how each peer is best
laid out on this machine: environments, processes, threads. Then the contenders take turns. Rates
leave out the first iteration, so nobody pays for compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from contenders import (
    NAMES,
    PEERS,
    ROOT,
    ContenderError,
    Setting,
    peers_python,
    run_ceiling,
    run_peer,
    run_tether,
)
from report import machine, plot, print_table, summarize, versions

ENVS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
ITERATION = 2048
CANDIDATES = (Setting(1), Setting(8), Setting(16), Setting(8, processes=True))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--envs", nargs="+", choices=ENVS, default=list(ENVS), help="default: all three")
    add("--repeats", type=int, default=3, help="turns of each contender (default: 3)")
    add("--steps-tether", type=int, default=163_840, help="after the first iteration")
    add("--steps-peer", type=int, default=16_384, help="after the first iteration")
    add("--steps-selection", type=int, default=4_096, help="after the first, per layout tried")
    add("--ceiling-seconds", type=float, default=2.0, help="per ceiling measured")
    add("--peers-python", type=Path, help="Python of an environment made from peers.txt")
    add("--out", type=Path, default=ROOT / "results" / "throughput.json")
    add("--plot", type=Path, default=ROOT / "results" / "throughput.png")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}; expected at least 1")
    for name in ("steps_tether", "steps_peer", "steps_selection"):
        steps = getattr(args, name)
        if steps < 1:
            parser.error(f"--{name.replace('_', '-')} is {steps}; expected at least 1")
        setattr(args, name, -(-steps // ITERATION) * ITERATION)
    if args.peers_python is None:
        args.peers_python = peers_python()
    if not args.peers_python.is_file():
        parser.error(f"--peers-python is {args.peers_python}; expected a Python interpreter")
    # Not resolve(): behind a virtual environment's link lies a Python without its packages.
    args.peers_python = args.peers_python.absolute()
    return args


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def select(
    args: argparse.Namespace, peer: str, env: str, own_envs: int
) -> tuple[Setting, list[dict[str, Any]]]:
    """The fastest layout of a peer, tether's among those tried: environments, then threads."""
    tried: dict[Setting, float] = {}

    def attempt(setting: Setting) -> None:
        steps = ITERATION + args.steps_selection
        result = run_peer(args.peers_python, peer, env, setting, steps, seed=0)
        tried[setting] = result["rate"]
        say(f"  {env:15} {NAMES[peer]:18} {setting!s:15} {result['rate']:8,.0f} steps/s")

    for setting in dict.fromkeys([*CANDIDATES, Setting(own_envs)]):
        attempt(setting)
    best = max(tried, key=lambda setting: tried[setting])
    attempt(Setting(best.num_envs, best.processes, threads=2))
    winner = max(tried, key=lambda setting: tried[setting])
    return winner, [{"layout": str(setting), "rate": rate} for setting, rate in tried.items()]


def measure(
    args: argparse.Namespace,
    winners: dict[tuple[str, str], Setting],
    env: str,
    turn: int,
    own_envs: int,
) -> list[dict[str, Any]]:
    """One turn of every contender on an environment; who begins moves on with the turn."""
    contenders = ["ceiling", "tether", *PEERS]
    first = turn % len(contenders)
    taken = []
    for contender in contenders[first:] + contenders[:first]:
        load = os.getloadavg()[0]
        if contender == "ceiling":
            results = run_ceiling(env, args.ceiling_seconds, turn, own_envs)
        elif contender == "tether":
            results = {"tether": run_tether(env, ITERATION + args.steps_tether, seed=turn)}
        else:
            setting, steps = winners[env, contender], ITERATION + args.steps_peer
            results = {
                contender: run_peer(args.peers_python, contender, env, setting, steps, seed=turn)
            }
        for name, result in results.items():
            say(f"  {env:15} {NAMES[name]:25} {result['rate']:8,.0f} steps/s")
            header = {"env": env, "contender": name, "turn": turn, "load_average_before": load}
            taken.append(header | result)
    return taken


def save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Select, take turns, sum up; saved after every turn."""
    begun = time.perf_counter()
    measurements: list[dict[str, Any]] = []
    results: dict[str, Any] = {
        "title": "PPO throughput at the paper's settings, environment steps per second",
        "rate": "(steps - steps of iteration 1) / (seconds - seconds of iteration 1)",
        "machine": machine(),
        "versions": {"tether": versions(), "peers": {}},
        "settings": {
            "repeats": args.repeats,
            "steps_tether": args.steps_tether,
            "steps_peer": args.steps_peer,
            "steps_selection": args.steps_selection,
            "ceiling_seconds": args.ceiling_seconds,
        },
        "selection": {},
    }
    load, cores = results["machine"]["load_average_at_start"][0], results["machine"]["cores"]
    if load > 0.25 * cores:
        say(f"warning: this machine is busy (load {load} on {cores} cores); rates will be low")
    winners: dict[tuple[str, str], Setting] = {}
    # Also the first to fail, before the long part begins, where something is not installed.
    probe = run_tether(args.envs[0], 2 * ITERATION, seed=0)
    own_envs = int(probe["settings"]["num_envs"])
    for env in args.envs:
        chosen = results["selection"][env] = {}
        for peer in PEERS:
            winner, tried = select(args, peer, env, own_envs)
            winners[env, peer] = winner
            chosen[peer] = {"winner": str(winner), "tried": tried}
    for turn in range(args.repeats):
        say(f"turn {turn + 1} of {args.repeats}")
        for env in args.envs:
            measurements += measure(args, winners, env, turn, own_envs)
            results["summary"] = summarize(measurements)
            results["measurements"] = measurements
            results["total_seconds"] = round(time.perf_counter() - begun, 1)
            save(results, args.out)
    for measurement in measurements:
        # Said once, at the top, where a reader looks.
        if measurement["contender"] in PEERS:
            results["versions"]["peers"] = measurement.pop("versions")
            results["settings"]["peers"] = measurement.pop("settings")
            results["versions"]["peers_python"] = measurement.pop("python")
        elif measurement["contender"] == "tether":
            results["settings"]["tether"] = measurement.pop("settings", None)
    save(results, args.out)
    return results


def main() -> None:
    args = parse()
    try:
        results = benchmark(args)
    except ContenderError as error:
        sys.exit(f"error: {error}")
    print_table(results)
    plot(results, args.plot)
    say(f"{results['total_seconds'] / 60:.1f} minutes; details in {args.out.name}")


if __name__ == "__main__":
    main()
