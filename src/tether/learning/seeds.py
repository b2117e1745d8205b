"""Several seeds of one training, as one folder: trained, interrupted and resumed as a whole.

The folder has ``seeds.json``, which says what is trained, and a run folder ``seed-K`` for each
seed. Start-up and compilation are paid once, and where an engine can train several at once, one
seed's physics runs while another learns. Each seed has the same numbers as if it ran alone.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from tether.errors import Interrupted, RunError, UserError
from tether.learning.callbacks import BaseCallback, Callback, RunView
from tether.learning.engine import Engine, default_folder
from tether.learning.learner import Learner, Metrics
from tether.learning.signals import StopRequest
from tether.learning.storage.durable import write_json
from tether.learning.training import Trained
from tether.version import __version__

T = TypeVar("T", bound=Trained)

RECORD: Final = "seeds.json"


class SeedsRecord(BaseModel):
    """The contents of ``seeds.json``, never changed afterwards.

    Attributes:
        objects: names of arguments that were objects, and have to be given again to resume.
    """

    model_config = ConfigDict(frozen=True)

    format: int = 1
    tether: str = __version__
    engine: str
    method: str
    seeds: list[int]
    arguments: dict[str, Any]
    objects: list[str]


@dataclass(frozen=True)
class Seeds(Generic[T]):
    """Finished trainings, one for each seed.

    Attributes:
        folder: of all of them.
        runs: in the order of the seeds.
        seconds: that all of them took together.
    """

    folder: Path
    runs: list[T]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        means = [run.metrics.get("return/mean") for run in self.runs]
        known = [mean for mean in means if mean is not None]
        steps = sum(run.steps for run in self.runs)
        return {
            "folder": str(self.folder),
            "runs": [run.summary() for run in self.runs],
            "steps": steps,
            "seconds": self.seconds,
            "steps_per_second": steps / self.seconds,
            "return_mean": float(np.mean(known)) if known else None,
            "return_std": float(np.std(known)) if known else None,
        }


def train_seeds(
    engine: Engine[Any, T],
    method: str | type[Any],
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **arguments: Any,
) -> Seeds[T]:
    """Trains once for each seed.

    Args:
        engine: of the method.
        method: its name, or a learner class.
        seeds: distinct seeds.
        out: a new or empty folder, which gets one run folder ``seed-K`` for each seed.
        progress: show the progress of the first seed.
        callbacks: are called for every seed.
        **arguments: as :meth:`tether.learning.engine.Engine.train` takes them.

    Raises:
        UserError: no seeds, a seed twice, or whatever one training raises; the others are then
            stopped with a checkpoint.
        Interrupted: Ctrl-C or SIGTERM; every seed that had begun has saved a checkpoint.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds are {list(seeds)}; expected distinct integers such as 0,1,2")
    if "seed" in arguments:
        raise UserError("seed and seeds are both given; give one of them")
    name, _ = engine.find(method)
    arguments = engine.opened(method, arguments)
    subject = engine.subject(arguments)
    short_name = name.rpartition(":")[2]
    folder = Path(out) if out is not None else default_folder(short_name, subject, seeds[0])
    plain, objects = _recordable(arguments)
    record = SeedsRecord(
        engine=engine.name, method=name, seeds=list(seeds), arguments=plain, objects=objects
    )
    _create(folder, record)

    def begin(seed: int, show: bool, more: Sequence[Callback], threads: dict[str, Any]) -> T:
        # Another way to say the seed would be lost in the settings of a language model.
        return engine.train(
            method,
            seed=seed,
            out=folder / f"seed-{seed}",
            callbacks=(*callbacks, *more),
            progress=show,
            **{**arguments, **threads},
        )

    return _all(engine, folder, list(seeds), begin, progress, arguments)


def resume_seeds(
    engine: Engine[Any, T],
    folder: str | Path,
    *,
    method: type[Any] | None = None,
    total_steps: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **given: Any,
) -> Seeds[T]:
    """Continues every seed of a folder, and begins those that had not begun.

    Args:
        engine: of the method.
        folder: that :func:`train_seeds` filled.
        method: the learner class, where it is one from outside tether.
        total_steps: a new budget for each seed.
        progress: show the progress of the first seed.
        callbacks: are called for every seed.
        **given: as :meth:`tether.learning.engine.Engine.resume` takes it.

    Raises:
        UserError: an object that the training began with is not given again, or whatever one
            training raises.
        Interrupted: as in :func:`train_seeds`.
    """
    path, record = Path(folder), read_record(Path(folder))
    waiting = [s for s in record.seeds if not (path / f"seed-{s}" / "run.json").exists()]
    missing = [name for name in record.objects if name not in given]
    if waiting and missing:
        raise UserError(
            f"{path} was started with {missing[0]} as an object, and seed {waiting[0]} has not "
            f"begun; pass the same as {missing[0]}="
        )
    if total_steps is not None:
        record.arguments["total_steps"] = total_steps

    def go_on(seed: int, show: bool, more: Sequence[Callback], threads: dict[str, Any]) -> T:
        place = path / f"seed-{seed}"
        how: dict[str, Any] = {"callbacks": (*callbacks, *more), "progress": show}
        if (place / "run.json").exists():
            own = {"method": method} if method is not None else {}
            return engine.resume(
                place, total_steps=total_steps, **how, **{**given, **threads, **own}
            )
        arguments = {**record.arguments, **given, **threads}
        return engine.train(method or record.method, seed=seed, out=place, **how, **arguments)

    return _all(engine, path, record.seeds, go_on, progress, given)


def is_seeds_folder(path: str | Path) -> bool:
    """Whether a folder holds several seeds of one training."""
    return (Path(path) / RECORD).is_file()


def runs_in(paths: Sequence[str | Path]) -> list[Path]:
    """Run folders, with those of each seed in place of a folder of several seeds.

    Raises:
        UserError: no seed of a folder has begun.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not is_seeds_folder(path):
            found.append(path)
            continue
        seeds = [path / f"seed-{seed}" for seed in read_record(path).seeds]
        begun = [seed for seed in seeds if (seed / "run.json").exists()]
        if not begun:
            raise UserError(f"no seed of {path} has begun; begin them: tether resume {path}")
        found += begun
    return found


def read_record(folder: Path) -> SeedsRecord:
    """What ``seeds.json`` says.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / RECORD
    try:
        return SeedsRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise RunError(f"{path} is damaged: {error.errors()[0]['msg']}") from error


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """Seeds as the command line has them: ``0,1,2``, ``0-9``, or both.

    Raises:
        UserError: something else; one number alone could mean a seed or how many.
    """
    seeds: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
        if match is None:
            raise UserError(f"{option} is {text!r}; expected seeds such as 0,1,2 or 0-9")
        first = int(match[1])
        seeds += range(first, int(match[2] or first) + 1)
    if len(seeds) == 1 and re.fullmatch(r"\s*\d+\s*", text):
        number = seeds[0]
        raise UserError(
            f"{option} is {text}, which could be one seed or a number of seeds; give {number}-"
            f"{number} for the seed {number} alone"
            + (f", or 0-{number - 1} for {number} seeds" if number > 1 else "")
        )
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"{option} is {text!r}; expected distinct seeds such as 0,1,2 or 0-9")
    return seeds


def _create(folder: Path, record: SeedsRecord) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if others := sorted(entry.name for entry in folder.iterdir()):
            again = f", or continue it: tether resume {shlex.quote(str(folder))}"
            raise RunError(
                f"folder {folder} is not empty (it has {others[0]}); choose another --out"
                + (again if is_seeds_folder(folder) else "")
            )
        write_json(folder / RECORD, record.model_dump())
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error


def _recordable(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    plain, objects = {}, []
    for name, value in arguments.items():
        if isinstance(value, Path):
            plain[name] = str(value)
            continue
        dump = getattr(value, "dump", None)
        try:
            plain[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            if name == "config" and callable(dump):
                plain |= dump()
            else:
                objects.append(name)
    return plain, objects


def _all(
    engine: Engine[Any, T],
    folder: Path,
    seeds: Sequence[int],
    one: Callable[[int, bool, Sequence[Callback], dict[str, Any]], T],
    progress: bool,
    arguments: dict[str, Any],
) -> Seeds[T]:
    workers, threads = engine.side_by_side(len(seeds), arguments)
    stop = _Stop()
    start = time.perf_counter()
    with ThreadPoolExecutor(workers, "seed") as pool:
        futures = [
            pool.submit(one, seed, progress and place == 0, (stop,), threads)
            for place, seed in enumerate(seeds)
        ]
        with StopRequest() as request:
            _wait(futures, request, stop)
    if request.received:
        line = (
            f"interrupted; checkpoints saved; continue with: tether resume "
            f"{shlex.quote(str(folder))}"
        )
        print(line, file=sys.stderr, flush=True)
        raise Interrupted(line)
    for future in futures:
        if not future.cancelled() and (error := future.exception()) is not None:
            raise error
    return Seeds(folder, [future.result() for future in futures], time.perf_counter() - start)


def _wait(futures: Sequence[Future[Any]], request: StopRequest, stop: _Stop) -> None:
    while any(not future.done() for future in futures):
        # In slices, since only this thread hears Ctrl-C. After a failure FIRST_EXCEPTION would
        # return at once, and this loop would take the interpreter from the others.
        until = ALL_COMPLETED if stop.event.is_set() else FIRST_EXCEPTION
        done, _ = wait(futures, timeout=0.2, return_when=until)
        failed = any(future.exception() for future in done if not future.cancelled())
        if request.received or failed:
            stop.event.set()
            for future in futures:
                future.cancel()


class _Stop(BaseCallback):
    """Ends a training after the iteration under way, with a checkpoint."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """False once another seed failed or Ctrl-C was pressed."""
        return False if self.event.is_set() else None
