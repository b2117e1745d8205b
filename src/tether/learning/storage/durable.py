"""Files that are either the old one or the whole new one, whatever happens in between."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from tether.errors import RunError

TEMPORARY_SUFFIX: Final = ".tmp"


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that takes the place of ``path`` when the block ends well.

    The bytes reach the disk (fsync) before the rename and the rename before the return, so a
    crash or power cut at any moment leaves the old file or the whole new one. If the block
    raises, the temporary file is removed and ``path`` is untouched.

    Raises:
        RunError: the file cannot be written (disk full, no permission).
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def check_new_file(path: Path) -> None:
    """Checks that a file can be made, before the work begins whose result it will hold.

    Raises:
        RunError: there is such a file already, or none can be written there.
    """
    if path.exists():
        raise RunError(f"there is a file {path} already; choose another --out")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RunError(f"cannot write {path}: {there} is not a writable folder")


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Writes ``content`` as one JSON object, whole or not at all.

    Raises:
        RunError: the file cannot be written.
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    with replaced(path) as file:
        file.write(json.dumps(content, indent=indent, allow_nan=False).encode() + b"\n")


def write_error(path: Path, error: OSError) -> RunError:
    """The one line a user needs when a file of the run cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"cannot write {path}: the disk is full; earlier checkpoints are untouched: free some "
            "space, then `tether resume`, or give the study's command again"
        )
    return RunError(f"cannot write {path}: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
