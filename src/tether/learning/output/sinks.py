"""Sinks besides ``metrics.jsonl``: TensorBoard files, Weights & Biases, trackio."""

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from tether.errors import UserError
from tether.learning.output.metrics import plain_number
from tether.learning.storage.durable import write_error

FLUSH_SECONDS: Final = 5.0


class Sink(Protocol):
    """A place that takes measurements besides ``metrics.jsonl``."""

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the measurements of the iteration that ended at ``step``."""
        ...

    def flush(self) -> None:
        """Puts what was taken so far where others can read it."""
        ...

    def close(self) -> None:
        """Flushes and lets go of files and connections."""
        ...


SINKS: Final = ("tensorboard", "trackio", "wandb")


def check_sinks(names: Sequence[str]) -> None:
    """Raises before anything is written if a sink is unknown or its package is not installed.

    Raises:
        UserError: names the sink and the extra that brings it.
    """
    for name in names:
        if name not in SINKS:
            raise UserError(f"unknown metrics sink {name!r}; expected any of {', '.join(SINKS)}")
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(_missing(name))


def open_sinks(
    names: Sequence[str], folder: Path, *, created: str, config: Mapping[str, Any], step: int
) -> list[Sink]:
    """Opens the sinks of a run.

    Args:
        names: any of ``"tensorboard"``, ``"wandb"``, ``"trackio"``.
        folder: the run's folder; its name is the run's name.
        created: when the run was made; with the name, the run's identity across resumes.
        config: the run's settings, shown beside its curves.
        step: where training goes on; curves of an interrupted future beyond it are hidden.

    Raises:
        UserError: an unknown name, or a sink whose package is not installed.
    """
    openers: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", step=step),
        "trackio": lambda: Trackio(folder, created=created, config=config),
        "wandb": lambda: WeightsAndBiases(folder, created=created, config=config),
    }
    check_sinks(names)
    opened: list[Sink] = []
    try:
        for name in dict.fromkeys(names):
            opened.append(openers[name]())
    except BaseException:
        for sink in opened:
            sink.close()
        raise
    return opened


class TensorBoard:
    """TensorBoard event files, one per stretch of training.

    An iteration is one event that holds all its scalars, written by the calling thread: a fraction
    of the cost of one event per scalar through a queue and a second thread.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        """Starts a new event file that hides events of ``folder`` beyond ``step``."""
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        self._folder = folder
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._flushed = time.monotonic()
        try:
            folder.mkdir(exist_ok=True)
            # The time in a file's name counts whole seconds; two starts within one must not meet.
            suffix = f".{os.getpid()}.{len(list(folder.iterdir()))}"
            self._writer = EventsWriter(str(folder / "events"), suffix)
        except OSError as error:
            raise write_error(folder, error) from error
        # TensorBoard drops events at or after the step of a START; those of `step` itself stay.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the measurements of the iteration that ended at ``step``."""
        value = self._summary.Value
        scalars = [
            value(tag=name, simple_value=plain_number(metrics[name])) for name in sorted(metrics)
        ]
        summary = self._summary(value=scalars)
        self._write(self._event(wall_time=time.time(), step=int(step), summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts what was taken so far on the disk, where a viewer sees it."""
        try:
            self._writer.flush()
        except OSError as error:
            raise write_error(self._folder, error) from error
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the event file."""
        try:
            self._writer.close()
        except OSError as error:
            raise write_error(self._folder, error) from error

    def _write(self, event: Any) -> None:
        try:
            self._writer.write_event(event)
        except OSError as error:
            raise write_error(self._folder, error) from error


class WeightsAndBiases:
    """A Weights & Biases run, continued under the same id when the run is resumed.

    What a killed run had sent beyond its last checkpoint stays there; W&B drops the repeats.
    """

    def __init__(self, folder: Path, *, created: str, config: Mapping[str, Any]) -> None:
        """Opens the run; project and entity come from W&B's own environment variables."""
        wandb = _import_extra("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tether"),
            name=folder.resolve().name,
            id=_identity(folder, created),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the measurements of the iteration that ended at ``step``."""
        self._run.log({name: plain_number(metrics[name]) for name in metrics}, step=int(step))

    def flush(self) -> None:
        """Does nothing: W&B sends from its own process."""

    def close(self) -> None:
        """Waits until W&B has taken everything."""
        self._run.finish()


class Trackio:
    """A trackio run, continued under the same name when the run is resumed.

    What a killed run had sent beyond its last checkpoint stays there and is sent again.
    """

    def __init__(self, folder: Path, *, created: str, config: Mapping[str, Any]) -> None:
        """Opens the run in the project ``tether`` (or ``TRACKIO_PROJECT``)."""
        trackio = _import_extra("trackio")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "tether"),
            name=_identity(folder, created),
            resume="allow",
            config=dict(config),
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Takes the measurements of the iteration that ended at ``step``."""
        self._run.log({name: plain_number(metrics[name]) for name in metrics}, step=int(step))

    def flush(self) -> None:
        """Does nothing: trackio sends from its own thread."""

    def close(self) -> None:
        """Waits until trackio has taken everything."""
        self._run.finish()


def _identity(folder: Path, created: str) -> str:
    """One name per run, the same after a resume: folders of different runs may share theirs."""
    moment = "".join(character for character in created if character.isdigit())[:14]
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.resolve().name)
    return f"{name[:40]}-{moment}"


def _import_extra(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(_missing(package)) from error


def _missing(package: str) -> str:
    return (
        f"the metrics sink {package!r} needs the package {package}; "
        "install it with: pip install 'tether-rl[track]'"
    )


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch while tensorboardX is imported.

    tensorboardX imports torch, where it is installed, only to name a type: 1.3 s and 150 MB that a
    run on the JAX engine would pay for nothing.
    """
    if "torch" in sys.modules or "tensorboardX" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
