"""A run's folder on the disk: what it holds, who may write to it, which checkpoint is good."""

import datetime
import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tether.errors import DamagedCheckpointError, RunError, UserError
from tether.learning.learner import State
from tether.learning.storage.checkpoint import SUFFIX, load_checkpoint
from tether.learning.storage.durable import TEMPORARY_SUFFIX, replaced, write_error
from tether.version import __version__

FORMAT: Final = 1
"""Version of the folder's layout; raised when an older tether would misread a newer folder."""

_RECORD: Final = "run.json"
_LOCK: Final = ".lock"
_HOLDER: Final = ".lock.pid"
_CHECKPOINT: Final = re.compile(r"step_\d{12,}" + re.escape(SUFFIX))

logger = logging.getLogger(__name__)


class RunRecord(BaseModel):
    """The contents of ``run.json``: what was asked for, never changed afterwards."""

    model_config = ConfigDict(frozen=True)

    format: int
    tether: str
    engine: str | None = None
    method: str
    config: dict[str, Any]
    spec: dict[str, Any]
    created: str

    @model_validator(mode="before")
    @classmethod
    def _name_the_engine(cls, content: Any) -> Any:
        """Names the engine of a run made before run.json did."""
        if isinstance(content, dict) and "engine" not in content:
            spec = content.get("spec")
            spec = spec if isinstance(spec, dict) else {}
            engine = "language" if spec.get("room") == "language" else None
            content = {**content, "engine": "control" if "env" in spec else engine}
        return content


class Position(BaseModel):
    """How far a run had come at a checkpoint; kept in the checkpoint's info."""

    model_config = ConfigDict(frozen=True, strict=True)

    steps: int = 0
    lines: int = 0
    bytes: int = 0
    seconds: float = 0.0


class RunFolder:
    """The files of one run.

    ========================  ==============================================================
    ``run.json``              format and tether version, method, config, spec, creation time
    ``metrics.jsonl``         one line per iteration
    ``tensorboard/``          event files, one per stretch of training
    ``checkpoints/``          the newest few, ``step_000000012345.safetensors``
    ``.lock``, ``.lock.pid``  held while a process writes; the holder's number and host
    ========================  ==============================================================
    """

    def __init__(self, path: Path, record: RunRecord) -> None:
        """Names the files; :meth:`create` and :meth:`open` make and check them."""
        self.path = path
        self.record = record
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints_path = path / "checkpoints"
        self._lock = _lock_of(path)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        method: str,
        config: Mapping[str, Any],
        spec: Mapping[str, Any],
        engine: str | None = None,
    ) -> "RunFolder":
        """Makes the folder and its ``run.json``; the lock is held on return.

        Raises:
            RunError: the folder is not empty, cannot be written, or another process has it.
        """
        record = RunRecord(
            format=FORMAT,
            tether=__version__,
            engine=engine,
            method=method,
            config=_json_able(config, "config"),
            spec=_json_able(spec, "spec"),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, record)
            folder.lock()
            # Left by a process that died between making the folder and naming the run.
            debris = {_LOCK, _HOLDER, _RECORD + TEMPORARY_SUFFIX, folder.checkpoints_path.name}
            if others := sorted({entry.name for entry in path.iterdir()} - debris):
                folder.unlock()
                raise RunError(
                    f"run folder {path} is not empty (it has {others[0]}); choose another --out, "
                    f"or go on with it: tether resume {path}"
                )
            folder.checkpoints_path.mkdir(exist_ok=True)
            with replaced(path / _RECORD) as file:
                file.write(record.model_dump_json(indent=2).encode() + b"\n")
        except FileExistsError as error:
            raise RunError(f"run folder {path} is a file; choose another --out") from error
        except OSError as error:
            raise write_error(path, error) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Reads an existing folder's ``run.json``; takes no lock.

        Raises:
            RunError: missing, not a run, damaged, or written by a newer tether.
        """
        if not path.is_dir():
            raise RunError(f"there is no run folder {path}")
        try:
            content = json.loads((path / _RECORD).read_bytes())
        except FileNotFoundError as error:
            raise RunError(f"{path} is not a run of tether: it has no {_RECORD}") from error
        except OSError as error:
            raise RunError(f"cannot read {path / _RECORD}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path / _RECORD} is damaged: it is not JSON") from error
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise RunError(
                f"run {path} has format {version} (tether {content.get('tether')}), newer than the "
                f"{FORMAT} this tether {__version__} reads; upgrade tether-rl"
            )
        try:
            record = RunRecord.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise RunError(f"{path / _RECORD} is damaged: {key}: {first['msg']}") from error
        return cls(path, record)

    def lock(self) -> None:
        """Makes this process the only writer, until :meth:`unlock` or its end.

        Raises:
            RunError: another process is the writer, or the folder cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire()
            (self.path / _HOLDER).write_text(f"{os.getpid()} {socket.gethostname()}")
        except Timeout as error:
            raise RunError(
                f"run folder {self.path} is in use by {self._holder()}; wait until it ends or stop "
                "it"
            ) from error
        except OSError as error:
            self._lock.release(force=True)
            raise write_error(self.path / _LOCK, error) from error

    def unlock(self) -> None:
        """Lets other processes write again."""
        self._lock.release(force=True)

    def checkpoints(self) -> list[Path]:
        """The checkpoint files, newest (most steps) first; damaged ones are listed too."""
        if not self.checkpoints_path.is_dir():
            return []
        names = [entry.name for entry in self.checkpoints_path.iterdir()]
        found = (name for name in names if _CHECKPOINT.fullmatch(name))
        return [self.checkpoints_path / n for n in sorted(found, key=_steps_of, reverse=True)]

    def checkpoint_path(self, steps: int) -> Path:
        """Where the checkpoint after ``steps`` belongs."""
        return self.checkpoints_path / f"step_{steps:012d}{SUFFIX}"

    def newest_good(self) -> tuple[State, Position] | None:
        """Loads the newest checkpoint that is whole, warning of each one that is not.

        Returns:
            Its state and position; None if the run has no checkpoint yet.

        Raises:
            RunError: there are checkpoints, and all are damaged.
        """
        damaged: list[Path] = []
        # A run in progress deletes old checkpoints between our looking and our reading.
        for _ in range(5):
            paths = [path for path in self.checkpoints() if path not in damaged]
            for path in paths:
                try:
                    state, info = load_checkpoint(path)
                    position = _position(path, info)
                except DamagedCheckpointError as error:
                    logger.warning("warning: %s; looking for an earlier one", error)
                    damaged.append(path)
                    continue
                except RunError:
                    if path.exists():
                        raise
                    break
                return state, position
            else:
                break
        if damaged:
            raise RunError(
                f"every checkpoint of {self.path} is damaged ({', '.join(p.name for p in damaged)})"
            )
        return None

    def set_aside_newer(self, steps: int) -> None:
        """Renames checkpoints beyond ``steps`` (damaged ones) out of the way, keeping their bytes.

        Otherwise they would count as the newest for ever.
        """
        for path in self.checkpoints():
            if _steps_of(path.name) > steps:
                path.replace(path.with_name(path.name + ".damaged"))

    def prune(self, keep: int) -> None:
        """Deletes all but the newest ``keep`` checkpoints."""
        for path in self.checkpoints()[keep:]:
            path.unlink(missing_ok=True)

    def remove_temporaries(self) -> None:
        """Deletes what a killed process was still writing."""
        for path in self.checkpoints_path.glob("*" + TEMPORARY_SUFFIX):
            path.unlink(missing_ok=True)

    def truncate_metrics(self, position: Position) -> Position:
        """Cuts ``metrics.jsonl`` back to what it was at a checkpoint.

        Returns:
            Where the file now ends: ``position``, unless lines were lost from the file.
        """
        if not self.metrics_path.exists() and position.bytes == 0:
            return position
        try:
            with self.metrics_path.open("a+b") as file:
                length = file.tell()
                if length < position.bytes:
                    logger.warning(
                        "warning: %s is shorter than the checkpoint recorded (%d of %d bytes); "
                        "earlier iterations are missing from it",
                        *(self.metrics_path, length, position.bytes),
                    )
                    file.seek(0)
                    content = file.read()
                    kept = content.rfind(b"\n") + 1
                    lines = content.count(b"\n")
                    position = position.model_copy(update={"bytes": kept, "lines": lines})
                file.truncate(position.bytes)
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.metrics_path, error) from error
        return position

    def _holder(self) -> str:
        try:
            number, host = (self.path / _HOLDER).read_text().split()
        except (OSError, ValueError):
            return "another process"
        where = "" if host == socket.gethostname() else f" on {host}"
        return f"process {number}{where}"


def _lock_of(path: Path) -> FileLock:
    # Not per thread: a run may be made in one thread and trained in another.
    return FileLock(path / _LOCK, timeout=0, thread_local=False)


def _steps_of(name: str) -> int:
    return int(name.removeprefix("step_").removesuffix(SUFFIX))


def _position(path: Path, info: dict[str, Any]) -> Position:
    try:
        return Position.model_validate(info)
    except ValidationError as error:
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: it does not say how far the run had come"
        ) from error


def _json_able(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The value as it will read back from JSON (tuples become lists)."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be written as JSON: {error}") from error
    return plain
