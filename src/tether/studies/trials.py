"""Trials: the pieces a study is made of, each done once, side by side, resumable at any moment.

A trial has a name, settings and a folder of its own. Its function fills the folder and returns a
JSON-able result; only a whole ``result.json`` counts as done. So a study that was killed does
again no more than the trials under way, and these go on from their own checkpoints.

Several processes, on one machine or on many that share the folder, may carry out the same study:
each claims the trials it does, leaves those that others hold, and waits for their results at the
end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from tether.arguments import say
from tether.errors import UserError
from tether.learning.storage.durable import write_json
from tether.studies.claims import Watch, is_claim, take
from tether.studies.cluster import Cluster
from tether.studies.executors import Executor, Processes, ThisProcess
from tether.studies.known import same_settings, take_known
from tether.studies.provenance import PROVENANCE, note_version

Result: TypeAlias = dict[str, Any]
TrialFunction: TypeAlias = Callable[[Mapping[str, Any], Path], Result]
"""A function of a module, from settings and a folder to a JSON-able result."""

POLL: Final = 1.0
"""Seconds between two looks at trials that other processes do."""


@dataclass(frozen=True)
class Trial:
    """A piece of a study.

    Attributes:
        name: of its folder; unique in the study.
        function: what does it, importable by other processes.
        settings: JSON-able; decide the result, together with what the trial reads of others.
        gpus: that it needs on a cluster.
    """

    name: str
    function: TrialFunction
    settings: Mapping[str, Any]
    gpus: float = 0.0


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    known: Sequence[Path] = (),
    progress: bool = True,
) -> dict[str, Result]:
    """Does what is left to do, and returns every result.

    Args:
        trials: independent of each other. Give the longest first where several work.
        folder: of the study; trial NAME works in ``folder/NAME``. Every machine of a cluster has
            to see it under the same path.
        workers: processes. 1: in this one, with all its threads; more: each with one thread.
        cluster: ``local`` or the address of a Ray cluster, whose machines do the trials in place
            of `workers` processes here, one on each core.
        known: JSON files of earlier studies, whose trials are not done again.
        progress: tell on stderr what is done.

    Returns:
        Results by name, in the order of `trials`.

    Raises:
        UserError: the folder or a known file holds a trial of this name with other settings, or
            what a trial raised, or a known file cannot be read, or two trials have one name, or
            there are no workers, or no cluster. Trials that are done stay done.
        Interrupted: a trial was stopped by a signal; its checkpoint is saved.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; expected at least 1")
    for name, times in Counter(trial.name for trial in trials).items():
        if times > 1:
            raise UserError(
                f"the study has trial {name} {times} times; give each of its parts once"
            )
    for file in known:
        take_known(file, folder, {trial.name: trial.settings for trial in trials})
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
    if waiting:
        with _executor(folder, min(workers, len(waiting)), cluster) as executor:
            if progress:
                first = ", ".join(trial.name for trial in waiting[:workers])
                count = f"{len(waiting)} trials" if len(waiting) > 1 else "1 trial"
                say(f"{count} to do, beginning with {first}; each is named when it is done")
            report = _Report(len(waiting)) if progress else None
            results |= _do_all(waiting, folder.absolute(), executor, report)
    return {trial.name: results[trial.name] for trial in trials}


def with_settings(trials: Sequence[Trial], results: Mapping[str, Result]) -> dict[str, Result]:
    """Each trial's result by name, with its settings: how a study's JSON file holds its trials."""
    return {t.name: {"settings": dict(t.settings), **results[t.name]} for t in trials}


def _executor(folder: Path, workers: int, cluster: str | None) -> Executor:
    if cluster is not None:
        return Cluster(cluster, folder)
    return ThisProcess() if workers == 1 else Processes(workers)


def _do_all(
    trials: Sequence[Trial], folder: Path, executor: Executor, report: _Report | None
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    waiting, running, elsewhere = deque(trials), dict[Future[_Outcome], Trial](), list[Trial]()
    watch, named = Watch(), set[str]()

    def finish(trial: Trial, result: Result, seconds: float | None) -> None:
        results[trial.name] = result
        if report is not None:
            report(trial.name, seconds)

    while waiting or running or elsewhere:
        # No more than can run: what an executor has handed on it cannot take back, and would
        # carry out after Ctrl-C or an error.
        while waiting and len(running) < executor.slots():
            trial = waiting.popleft()
            abandoned = watch.abandoned(folder / trial.name)
            running[executor.submit(carry_out, trial, folder, abandoned, gpus=trial.gpus)] = trial
        if not running:
            time.sleep(POLL)
        patience = POLL if waiting or elsewhere else None
        done, _ = wait(running, timeout=patience, return_when=FIRST_COMPLETED)
        for future in done:
            trial = running.pop(future)
            outcome = future.result()
            if outcome is not None:
                finish(trial, *outcome)
                continue
            elsewhere.append(trial)
            if trial.name not in named:
                named.add(trial.name)
                place = folder / trial.name
                say(f"{place} is in use by another process ({watch.holder(place)}); waiting for it")
        for trial in list(elsewhere):
            result = _finished(trial, folder)
            if result is not None:
                finish(trial, result, None)
            elif watch.is_free(folder / trial.name):
                waiting.append(trial)
            else:
                continue
            elsewhere.remove(trial)
    return results


_Outcome: TypeAlias = tuple[Result, float] | None
"""Result and seconds; None if another process does the trial."""


class _Report:
    """A line on stderr for each trial that is done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.began = time.monotonic()

    def __call__(self, name: str, seconds: float | None) -> None:
        self.done += 1
        passed = time.monotonic() - self.began
        left = passed / self.done * (self.total - self.done)
        rest = f", about {left:,.0f} s left" if left else ""
        took = "by another process" if seconds is None else f"{seconds:,.0f} s"
        say(f"[{self.done}/{self.total}] {name}, {took}{rest}")


def carry_out(trial: Trial, folder: Path, abandoned: int) -> _Outcome:
    """Does a trial in this process, unless another does it.

    Args:
        trial: what to do.
        folder: of the study.
        abandoned: claims of the trial's folder up to this number do not count.

    Returns:
        Result and seconds, or None if another process holds the trial's folder.

    Raises:
        UserError: whatever the trial raises, or its folder cannot be written.
    """
    began = time.monotonic()
    place = folder / trial.name
    try:
        place.mkdir(parents=True, exist_ok=True)
        claim = take(place, abandoned)
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror or error}") from error
    if claim is None:
        return None
    with claim:
        # Whoever had it until now may have ended it.
        done = _finished(trial, folder)
        return _do(trial, place) if done is None else done, time.monotonic() - began


def _do(trial: Trial, place: Path) -> Result:
    write_json(place / "settings.json", trial.settings)
    note_version(place)
    try:
        result = trial.function(trial.settings, place)
    except UserError:
        # Settings that were never accepted must not hold the folder against better ones.
        ours = {"settings.json", PROVENANCE}
        if all(item.name in ours or is_claim(item) for item in place.iterdir()):
            shutil.rmtree(place)
        raise
    write_json(place / "result.json", result)
    return result


def _finished(trial: Trial, folder: Path) -> Result | None:
    """The result, if the trial is done; checks that its folder holds this trial and no other."""
    place = folder / trial.name
    settings, result = place / "settings.json", place / "result.json"
    if settings.exists() and not same_settings(_read(settings), trial.settings):
        raise UserError(
            f"{place} holds a trial with other settings; choose another --out, or remove it"
        )
    return _read(result) if result.exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove it to do this trial again") from error
