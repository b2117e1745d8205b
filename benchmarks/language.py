"""How fast tether aligns a language model, next to TRL; one run, one table.

    python benchmarks/language.py
    python benchmarks/language.py --methods dpo --turns 1
    python benchmarks/language.py --device cuda --dtype bfloat16 --model HuggingFaceTB/SmolLM2-1.7B

DPO, instruction tuning, RLHF with PPO, and sampling: same weights, token ids, batches, optimizer
and precision, every contender in a process of its own. TRL runs as it comes and at its best: a
short round first tries what may help it. Then the contenders take turns, and who begins moves on.
Rates leave out the first step. DPO's losses are compared step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from contenders import HERE, ROOT, ContenderError, peers_python, run
from language_jobs import (
    CANDIDATES,
    DATA,
    LAPTOP,
    METHODS,
    OPTIMIZER,
    SERVER,
    UNITS,
    Texts,
    needed_flops,
)
from language_report import NAMES, print_table, summarize
from report import machine

PINS = HERE / "peers-language.txt"
PPO_PINS = HERE / "peers-language-ppo.txt"
PPO_TRL = PPO_PINS.read_text().split("trl==")[1].strip()
# Steps of a job that only chooses, the first of which is not timed.
SELECTION_STEPS = {"dpo": 3, "sft": 4}
# bfloat16 without sparsity, operations per second, from the makers' data sheets.
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
SIZES = {"laptop": LAPTOP, "server": SERVER}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {"tether": {}},
    "sft": {"tether": {}},
    "rlhf": {"tether": {}, "tether_separate": {"critic": "separate"}},
    "rlhf_chat": {"tether": {}},
    "generate": {"tether": {}},
}
"""tether's own contenders and their options; the first is what it does unless told otherwise."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all four")
    add("--model", default="smollm2-135m-instruct", help="any that tether loads")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--size", choices=("laptop", "server"), help="default: server on cuda, else laptop")
    add("--turns", type=int, default=3, help="of each contender (default: 3)")
    add("--threads", type=int, default=0, help="of each contender; default: one per core")
    add("--no-selection", action="store_true", help="take TRL's first candidate for its best")
    add("--peak-tflops", type=float, help="of the device; default: known or measured")
    add("--peers-python", type=Path, help="Python of an environment made from peers-language.txt")
    add("--ppo-packages", type=Path, help="folder with the packages of peers-language-ppo.txt")
    add("--out", type=Path, default=ROOT / "results" / "language.json")
    args = parser.parse_args()
    if args.turns < 1:
        parser.error(f"--turns is {args.turns}; expected at least 1")
    if args.peers_python is None:
        args.peers_python = peers_python(ROOT / ".venv-peers-language", PINS)
    if not args.peers_python.is_file():
        parser.error(f"--peers-python is {args.peers_python}; expected a Python interpreter")
    # Not resolve(): behind a virtual environment's link lies a Python without its packages.
    args.peers_python = args.peers_python.absolute()
    if args.ppo_packages is None and any(m.startswith("rlhf") for m in args.methods):
        args.ppo_packages = ppo_packages(args.peers_python)
    if args.size is None:
        args.size = "server" if args.device.startswith("cuda") else "laptop"
    return args


def ppo_packages(python: Path) -> Path:
    """A folder with the TRL that still has PPO, to lie over the peers' environment."""
    folder = ROOT / ".venv-peers-language" / "ppo"
    if not folder.is_dir() or (folder / PPO_PINS.name).read_text() != PPO_PINS.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), "--requirement", str(PPO_PINS)], check=True)
        shutil.copy(PPO_PINS, folder)
    return folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """The jobs of one run, and how they are handed out."""

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        from tether.language.models.files import find_folder

        self.args = args
        self.folder = find_folder(args.model)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.texts = Texts.read(AutoTokenizer.from_pretrained(self.folder))

    def settings(self, method: str, **changes: Any) -> dict[str, Any]:
        return {**OPTIMIZER, **SIZES[self.args.size][method], **changes}

    def job(
        self, method: str, settings: dict[str, Any], options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        return {
            "method": method,
            "model": str(self.folder),
            "device": self.args.device,
            "dtype": self.args.dtype,
            "threads": self.args.threads,
            "seed": seed,
            "settings": settings,
            "options": options,
            "data": DATA[method](self.texts, settings, seed),
        }

    def carry_out(self, contender: str, job: dict[str, Any]) -> dict[str, Any]:
        """Hand a job to a contender; what it did, and the rate after the first step."""
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(job))
            if contender.startswith("tether"):
                result = run([sys.executable, str(HERE / "language_tether.py"), str(path)])
            else:
                over = {"PYTHONPATH": str(self.args.ppo_packages)}
                command = [str(self.args.peers_python), str(HERE / "peer_trl.py"), str(path)]
                chosen = over if job["method"].startswith("rlhf") else {}
                result = run(command, foreign=True, environment=chosen)
        result["command"] = result["command"].replace(str(path), "JOB.json")
        return result | {"load_average_before": load}

    def measure(
        self, contender: str, method: str, options: dict[str, Any], seed: int, **changes: Any
    ) -> dict[str, Any]:
        settings = self.settings(method, **changes)
        job = self.job(method, settings, options, seed)
        result = self.carry_out(contender, job)
        marks = result.pop("marks")
        result["step_seconds"] = [b - a for a, b in pairwise(marks)]
        # The first step pays for what is set up or compiled when first used.
        units, seconds = sum(result["units"][1:]), marks[-1] - marks[1]
        result["rate"] = units / seconds
        result["startup_seconds"] = result["wall_seconds"] - seconds
        if method == "sft":
            total = sum(len(d["prompt"]) + len(d["completion"]) for d in job["data"])
            if sum(result["units"]) != total:
                raise ContenderError(
                    f"{contender} read {sum(result['units'])} tokens; expected all {total}"
                )
        else:
            total = len(job["data"])
        if method == "generate":
            total = sum(result["units"])
        length = None
        if method.startswith("rlhf"):
            length = result["mean_length"] = mean(result["lengths"][1:])
        flops = needed_flops(method, settings, self.config, job["data"], length)
        result["flops_per_unit"] = flops / total
        if "preparation_seconds" in result:
            result["preparation_seconds_per_pair"] = result["preparation_seconds"] / total
        return {"method": method, "contender": contender, "options": options, **result}

    def select(self, method: str) -> tuple[str | None, list[dict[str, Any]]]:
        """What TRL is fastest with, if there is a choice, and all that was tried."""
        candidates = CANDIDATES[method]
        if not candidates:
            return None, []
        names = list(candidates)[:1] if self.args.no_selection else list(candidates)
        tried = []
        for name in names if len(names) > 1 else ():
            try:
                result = self.measure(
                    "trl_best", method, candidates[name], 0, steps=SELECTION_STEPS[method]
                )
            except ContenderError as error:
                say(f"  {method:9} TRL, {name}: does not run")
                tried.append({"candidate": name, "error": str(error).splitlines()[-1]})
                continue
            say(f"  {method:9} TRL, {name:36} {result['rate']:9.3f} {UNITS[method]}/s")
            kept = ("rate", "startup_seconds", "peak_memory_mb")
            tried.append({"candidate": name} | {key: result[key] for key in kept})
        ran = [t for t in tried if "rate" in t]
        best = max(ran, key=lambda t: t["rate"])["candidate"] if ran else names[0]
        return str(best), tried

    def peak(self) -> float:
        """Operations per second that the device reaches at most."""
        if self.args.peak_tflops:
            return float(self.args.peak_tflops) * 1e12
        settings = {"steps": 20, **OPTIMIZER}
        job = self.job("dpo", self.settings("dpo", steps=1), {}, 0) | {"data": []}
        job |= {"method": "peak", "settings": settings}
        found = self.carry_out("tether", job)
        name = found.get("device_name", "")
        if self.args.dtype == "bfloat16":
            for known, flops in PEAKS.items():
                if known in name.replace("-", " ").split():
                    return flops
        return float(found["flops_per_second"])


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Select, take turns, sum up; saved after every turn."""
    begun = time.perf_counter()
    bench = Bench(args)
    measurements: list[dict[str, Any]] = []
    results: dict[str, Any] = {
        "title": "Aligning a language model: tether beside TRL",
        "rate": "units of all steps but the first / seconds of all steps but the first",
        "machine": machine(),
        "model": args.model,
        "device": args.device,
        "dtype": args.dtype,
        "size": args.size,
        "turns": args.turns,
        "threads": args.threads or os.cpu_count(),
        "settings": {method: bench.settings(method) for method in args.methods},
        "versions": {},
        "selection": {},
    }
    load, cores = results["machine"]["load_average_at_start"][0], results["machine"]["cores"]
    if load > 0.25 * cores:
        say(f"warning: this machine is busy (load {load} on {cores} cores); rates will be low")
    results["peak_flops_per_second"] = bench.peak()
    contenders: dict[str, dict[str, dict[str, Any]]] = {}
    for method in args.methods:
        best, tried = bench.select(method)
        results["selection"][method] = {"best": best, "tried": tried}
        contenders[method] = {**OWN[method], "trl": {}}
        if best is not None:
            contenders[method]["trl_best"] = CANDIDATES[method][best]
    for turn in range(args.turns):
        say(f"turn {turn + 1} of {args.turns}")
        for method, present in contenders.items():
            names = list(present)
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                result = bench.measure(name, method, present[name], turn)
                measurements.append({"turn": turn, **result})
                say(
                    f"  {method:9} {NAMES[name]:26} {result['rate']:9.3f} {UNITS[method]}/s  "
                    f"{result['peak_memory_mb']:6.0f} MB"
                )
                found = result.pop("versions")
                group = "tether" if name.startswith("tether") else "trl"
                results["versions"][f"{group}_ppo" if found.get("trl") == PPO_TRL else group] = (
                    found
                )
            results["summary"] = summarize(measurements, results["peak_flops_per_second"])
            results["measurements"] = measurements
            results["total_seconds"] = round(time.perf_counter() - begun, 1)
            save(results, args.out)
    return results


def save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    args = parse()
    try:
        results = benchmark(args)
    except ContenderError as error:
        sys.exit(f"error: {error}")
    print_table(results)
    say(f"{results['total_seconds'] / 60:.1f} minutes; details in {args.out.name}")


if __name__ == "__main__":
    main()
