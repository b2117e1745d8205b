"""Who is measured, and how one of them is run: a command in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
PINS = HERE / "peers.txt"
# Each contender sets its own threads, and how it gets memory; what the caller's shell says must not
# favour one of them.
TUNING_VARIABLES = (
    "XLA_FLAGS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "THP_MEM_ALLOC_ENABLE",
)
PEERS = ("sb3", "sbx")
CEILING_SIMS = 16
# The "own" ones have as many simulations as tether has environments, where that is another number:
# wider batches are faster, and tether must not be compared with a lower ceiling than its own.
NAMES = {
    "physics": "physics only",
    "physics_own": "physics only",
    "ceiling": "ceiling (JAX policy)",
    "ceiling_own": "ceiling (JAX policy)",
    "ceiling_numpy": "ceiling (NumPy policy)",
    "tether": "tether",
    "sb3": "Stable-Baselines3",
    "sbx": "SBX",
}


@dataclass(frozen=True)
class Setting:
    """How a peer is laid out on the machine; the learning is the same in all."""

    num_envs: int
    processes: bool = False
    threads: int = 1

    def __str__(self) -> str:
        kind = "proc" if self.processes else "env"
        plural = "s" if self.num_envs > 1 else ""
        return f"{self.num_envs} {kind}{plural}, {self.threads} thr"

    def arguments(self) -> list[str]:
        chosen = ["--num-envs", str(self.num_envs), "--threads", str(self.threads)]
        return [*chosen, "--processes"] if self.processes else chosen


class ContenderError(RuntimeError):
    """A measured command failed."""


def run(
    command: list[str], *, foreign: bool = False, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a command; the JSON object on its last line, with the wall time and peak memory of it.

    Args:
        command: what to run; files by their absolute names.
        foreign: whether it runs with another Python, which must not see this one's path.
        environment: further variables it is to see.

    Raises:
        ContenderError: it exited with an error or printed no JSON.
    """
    hidden = {*TUNING_VARIABLES, *(("PYTHONPATH",) if foreign else ())}
    seen = {name: value for name, value in os.environ.items() if name not in hidden}
    begun = time.perf_counter()
    # In a folder that goes away: MuJoCo leaves a log of its warnings wherever it runs.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**seen, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            output = process.stdout.read()
            # wait4 tells the memory of this one child; getrusage only the largest of all so far.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
        wall = time.perf_counter() - begun
        errors.seek(0)
        complaint = "\n".join(errors.read().strip().splitlines()[-8:])
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        raise ContenderError(
            f"{' '.join(public(command))}\nexited with {process.returncode}:\n{complaint}"
        )
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except ValueError as error:
        raise ContenderError(
            f"{' '.join(public(command))}\nended with {lines[-1]!r}; expected a JSON object"
        ) from error
    result["wall_seconds"] = wall
    # A peer's own figure adds its environments' processes.
    result["peak_memory_mb"] = max(result.get("peak_memory_mb") or 0.0, usage.ru_maxrss / 1024)
    result["command"] = " ".join(public(command))
    return result


def public(command: list[str]) -> list[str]:
    """The command as anyone may type it in the repository's root."""
    shown = ["python", *command[1:]]
    if "--out" in shown:
        shown[shown.index("--out") + 1] = "DIR"
    return [part.removeprefix(f"{ROOT}/") for part in shown]


def steady(result: dict[str, Any]) -> dict[str, Any]:
    """Add the rate after the first iteration, so that nobody pays for compilation, and the rest.

    rate = (steps - steps of the first iteration) / (seconds - seconds of the first iteration);
    startup_seconds is all wall time outside that window: imports, compilation, the first iteration.
    """
    steps = result["steps"] - result["steps_per_iteration"]
    seconds = result["seconds"] - result["first_iteration_seconds"]
    if steps <= 0 or seconds <= 0:
        raise ContenderError(
            f"{result['command']}\ntook {result['steps']} steps; expected more than one iteration "
            f"of {result['steps_per_iteration']}"
        )
    result["rate"] = steps / seconds
    result["startup_seconds"] = result["wall_seconds"] - seconds
    return result


def run_tether(
    env: str, steps: int, seed: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """tether's PPO at the paper's settings, through its command line; `environment` as in `run`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "tether", "train", "ppo", "--env", env]
        command += ["--preset", "paper", "--total-steps", str(steps), "--seed", str(seed)]
        result = steady(
            run([*command, "--out", str(out), "--json", "--quiet"], environment=environment)
        )
        result["settings"] = json.loads((out / "run.json").read_text())["config"]
    del result["run"]
    # tether gives the physics every core up to 8 unless told otherwise.
    threads = min(8, len(os.sched_getaffinity(0)))
    return result | {"setting": f"{result['settings']['num_envs']} envs, {threads} thr"}


def run_peer(
    python: Path, peer: str, env: str, setting: Setting, steps: int, seed: int
) -> dict[str, Any]:
    """A peer's PPO at the same settings."""
    command = [str(python), str(HERE / "peer_ppo.py"), "--peer", peer, "--env", env]
    command += [*setting.arguments(), "--total-steps", str(steps), "--seed", str(seed)]
    return steady(run(command, foreign=True)) | {"setting": str(setting)}


def run_ceiling(env: str, seconds: float, seed: int, own_sims: int) -> dict[str, dict[str, Any]]:
    """Physics alone, and driven by a policy in JAX and in NumPy: contender -> result.

    Args:
        env: one of ceiling.py's tasks.
        seconds: per measurement.
        seed: draws weights, noise and starts.
        own_sims: how many environments tether has.
    """
    sources = {"physics": "physics", "ceiling": "policy", "ceiling_numpy": "numpy"}
    rounds = [(CEILING_SIMS, sources)]
    if own_sims != CEILING_SIMS:
        rounds.append((own_sims, {"physics_own": "physics", "ceiling_own": "policy"}))
    results = {}
    for sims, wanted in rounds:
        command = [sys.executable, str(HERE / "ceiling.py"), "--env", env, "--sims", str(sims)]
        command += ["--seconds", str(seconds), "--seed", str(seed), "--drivers", *wanted.values()]
        result = run(command)
        for name, source in wanted.items():
            results[name] = {
                **result[source],
                "rate": result[source]["steps_per_second"],
                "setting": f"{result['sims']} sims, {result['threads']} thr",
                # Of the whole process, which makes all its measurements one after the other.
                **{key: result[key] for key in ("command", "wall_seconds", "peak_memory_mb")},
            }
    return results


def peers_python(folder: Path = ROOT / ".venv-peers", pins: Path = PINS) -> Path:
    """The Python of the peers' own environment, made from their pins unless it is there already."""
    python, made_from = folder / "bin" / "python", folder / pins.name
    wanted = pins.read_text()
    if made_from.exists() and made_from.read_text() == wanted:
        return python
    print(f"setting up {folder.name} from {pins.name}", file=sys.stderr)
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    # Alone and first: asked for by another package, pip would choose the build with CUDA.
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--requirement", str(pins)], check=True)
    shutil.copy(pins, made_from)
    return python
