"""Trials: the pieces a study is made of, each done once, side by side, resumable at any moment.

A trial has a name, settings and a folder of its own. Its function fills the folder and returns a
JSON-able result; only a whole ``result.json`` counts as done. So a study that was killed does
again no more than the trials under way, and these go on from their own checkpoints.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from filelock import FileLock, Timeout

from tether.arguments import say
from tether.errors import UserError
from tether.learning.storage.durable import write_json

Result: TypeAlias = dict[str, Any]
TrialFunction: TypeAlias = Callable[[Mapping[str, Any], Path], Result]
"""A function of a module, from settings and a folder to a JSON-able result."""

GRACE: Final = 60.0
"""Seconds that an orphaned worker has for a checkpoint."""

_LOCK: Final = ".lock"


@dataclass(frozen=True)
class Trial:
    """A piece of a study.

    Attributes:
        name: of its folder; unique in the study.
        function: what does it, importable by other processes.
        settings: JSON-able; decide the result, together with what the trial reads of others.
    """

    name: str
    function: TrialFunction
    settings: Mapping[str, Any]


def run_trials(
    trials: Sequence[Trial], folder: Path, *, workers: int = 1, progress: bool = True
) -> dict[str, Result]:
    """Does what is left to do, and returns every result.

    Args:
        trials: independent of each other. Give the longest first where several work.
        folder: of the study; trial NAME works in ``folder/NAME``.
        workers: processes. 1: in this one, with all its threads; more: each with one thread.
        progress: tell on stderr what is done.

    Returns:
        Results by name, in the order of `trials`.

    Raises:
        UserError: the folder holds a trial of this name with other settings, or what a trial
            raised, or two trials have one name, or there are no workers. Trials that are done
            stay done.
        Interrupted: a trial was stopped by a signal; its checkpoint is saved.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; expected at least 1")
    for name, times in Counter(trial.name for trial in trials).items():
        if times > 1:
            raise UserError(
                f"the study has trial {name} {times} times; give each of its parts once"
            )
    waiting = []
    results: dict[str, Result] = {}
    for trial in trials:
        done = _finished(trial, folder)
        if done is None:
            waiting.append(trial)
        else:
            results[trial.name] = done
    if progress and results and waiting:
        say(f"{len(results)} of {len(trials)} trials were done before")
    report = _Report(len(waiting)) if progress else None
    if workers == 1 or len(waiting) <= 1:
        for trial in waiting:
            began = time.monotonic()
            results[trial.name] = _carry_out(trial, folder)
            if report is not None:
                report(trial.name, time.monotonic() - began)
    else:
        results |= _side_by_side(waiting, folder, workers, report)
    return {trial.name: results[trial.name] for trial in trials}


def _side_by_side(
    trials: Sequence[Trial], folder: Path, workers: int, report: _Report | None
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    # A forked copy of a process with threads may hang; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    parent = os.getpid()
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(parent,)) as pool:
        waiting = deque(trials)
        running: dict[Future[tuple[Result, float]], Trial] = {}
        try:
            while waiting or running:
                # No more than can run: what a pool has handed on it cannot take back, and would
                # carry out after Ctrl-C or an error.
                while waiting and len(running) < workers:
                    trial = waiting.popleft()
                    running[pool.submit(_work, trial, folder, parent)] = trial
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    trial = running.pop(future)
                    results[trial.name], seconds = future.result()
                    if report is not None:
                        report(trial.name, seconds)
        except BrokenProcessPool:
            raise UserError(
                "a process of the study was killed, perhaps for want of memory; give the command "
                "again to go on, with fewer --workers if it happens again"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


class _Report:
    """A line on stderr for each trial that is done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.began = time.monotonic()

    def __call__(self, name: str, seconds: float) -> None:
        self.done += 1
        passed = time.monotonic() - self.began
        left = passed / self.done * (self.total - self.done)
        rest = f", about {left:,.0f} s left" if left else ""
        say(f"[{self.done}/{self.total}] {name}, {seconds:,.0f} s{rest}")


def _finished(trial: Trial, folder: Path) -> Result | None:
    """The result, if the trial is done; checks that its folder holds this trial and no other."""
    place = folder / trial.name
    settings, result = place / "settings.json", place / "result.json"
    if settings.exists() and _read(settings) != json.loads(json.dumps(trial.settings)):
        raise UserError(
            f"{place} holds a trial with other settings; choose another --out, or remove it"
        )
    return _read(result) if result.exists() else None


def _carry_out(trial: Trial, folder: Path) -> Result:
    place = folder / trial.name
    try:
        place.mkdir(parents=True, exist_ok=True)
        alone = _alone(place)
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror or error}") from error
    with alone:
        # Whoever had it until now may have ended it.
        done = _finished(trial, folder)
        return _do(trial, place) if done is None else done


def _do(trial: Trial, place: Path) -> Result:
    write_json(place / "settings.json", trial.settings)
    try:
        result = trial.function(trial.settings, place)
    except UserError:
        # Settings that were never accepted must not hold the folder against better ones.
        if {item.name for item in place.iterdir()} <= {"settings.json", _LOCK}:
            shutil.rmtree(place)
        raise
    write_json(place / "result.json", result)
    return result


def _alone(place: Path) -> AbstractContextManager[object]:
    """Waits for whoever works in the folder: a study that was killed leaves a worker that saves.

    Raises:
        UserError: somebody does for longer than that takes.
    """
    lock = FileLock(place / _LOCK)
    try:
        return lock.acquire(timeout=1.0)
    except Timeout:
        say(f"{place} is in use by another process, perhaps of a study just stopped; waiting")
    try:
        return lock.acquire(timeout=GRACE)
    except Timeout:
        raise UserError(
            f"{place} is in use by another process; wait until it ends, or stop it"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove it to do this trial again") from error


def _begin(parent: int) -> None:
    """Before anything heavy is imported: workers share the cores, and do not fight for them."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """Ends this process soon after the study's: nobody would ask it for its result."""
    while os.getppid() == parent:
        time.sleep(0.5)
    # A training answers with a checkpoint, anything else with its end.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _work(trial: Trial, folder: Path, parent: int) -> tuple[Result, float]:
    if os.getppid() != parent:
        os._exit(1)
    began = time.monotonic()
    try:
        return _carry_out(trial, folder), time.monotonic() - began
    finally:
        # An orphan has saved what there was to save.
        if os.getppid() != parent:
            os._exit(1)
