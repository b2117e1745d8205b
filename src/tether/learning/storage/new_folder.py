"""A folder that is written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from tether.errors import UserError

_SUFFIX: Final = ".unfinished"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside ``path`` that takes its name when the block ends well.

    If the block raises, or SIGINT or SIGTERM arrives, the temporary folder and every parent that
    was made for it are deleted, so that nothing is left behind.

    Args:
        path: a folder that does not exist or is empty.

    Raises:
        UserError: ``path`` is a file or a folder that is not empty, or cannot be written.
        KeyboardInterrupt: SIGTERM arrived; the earlier handler is back by then.
    """
    check_new(path)
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    unfinished: Path | None = None
    try:
        with _terminated_as_interrupted():
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(
                tempfile.mkdtemp(
                    prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.absolute().parent
                )
            )
            yield unfinished
            # mkdtemp and safetensors let only the owner read; the result is for others as well.
            mask = ~_umask()
            unfinished.chmod(0o777 & mask)
            for file in unfinished.iterdir():
                file.chmod(0o666 & mask)
            if path.exists():
                path.rmdir()
            unfinished.rename(path)
    except BaseException as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def check_new(path: Path) -> None:
    """Raises a UserError unless ``path`` does not exist or is an empty folder."""
    try:
        if path.is_dir():
            first = min((entry.name for entry in path.iterdir()), default=None)
            if first is not None:
                raise UserError(
                    f"the folder {path} is not empty (it has {first}); choose another --out"
                )
        elif path.exists() or path.is_symlink():
            raise UserError(f"{path} is a file; choose another --out")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """While active, SIGTERM raises KeyboardInterrupt, which cleans up where dying would not."""
    previous = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    # None: installed by C code, which Python could not put back.
    if not main or previous in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _umask() -> int:
    # There is no way to read it but to set it.
    current = os.umask(0o077)
    os.umask(current)
    return current
