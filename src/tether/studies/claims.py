"""Claims: one process at a time works in a folder, on one machine or on many that share it.

    claim-1, claim-2, ...   one file per holder; the highest number holds the folder

A claim is a file that ``link`` puts in place, which succeeds for one process only on every POSIX
file system, NFS included, where ``flock`` may be missing or local to each machine. Numbers only
rise: a claim whose holder has died is never removed to be made again, which two others could do at
once, but followed by the next number.

The holder writes a new count into its claim every few seconds. Another process takes the claim for
abandoned if its holder was a process of this machine that no longer exists, or if it has itself
watched the content stand still for :data:`ABANDONED` seconds. No two machines' clocks are compared.

Source:
    open(2), section on O_EXCL: link a unique file and look at its link count, whatever ``link``
    returned.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tether.arguments import say

HEARTBEAT: Final = 5.0
"""Seconds between two counts of a holder."""
ABANDONED: Final = 90.0
"""Seconds without a new count after which a claim from another machine is abandoned. NFS clients
keep what they know of a file for up to a minute."""
PREFIX: Final = "claim-"


class Claim:
    """A folder that this process works in, until the end of the ``with`` block."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        """Use :func:`take`."""
        self._path = path
        self._owner = owner
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        self._thread.join()
        # The trial may have removed its folder.
        with suppress(OSError):
            _rewrite(self._path, {**self._owner, "released": True})

    def _beat(self) -> None:
        count = 0
        while not self._released.wait(HEARTBEAT):
            count += 1
            # A machine that slept, or lost the shared folder for a while, may have been replaced.
            if _number(_newest(self._path.parent)) > _number(self._path):
                say(f"{self._path.parent} was taken over by another process; this one ends")
                os._exit(1)
            with suppress(OSError):
                _rewrite(self._path, {**self._owner, "count": count})


class Watch:
    """Remembers how long claims have stood still, as seen from this process."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def abandoned(self, folder: Path) -> int:
        """The number up to which claims of the folder no longer count.

        Ask again and again: a claim of another machine has to be seen standing still for a while.
        """
        newest = _newest(folder)
        if newest is None:
            return 0
        content = _content(newest)
        if _is_over(content):
            return _number(newest)
        now = time.monotonic()
        before, since = self._seen.get(newest, (b"", now))
        if content != before:
            self._seen[newest] = (content, now)
            return _number(newest) - 1
        return _number(newest) - (now - since < ABANDONED)

    def is_free(self, folder: Path) -> bool:
        """Whether nobody holds the folder any more."""
        return _number(_newest(folder)) <= self.abandoned(folder)

    def holder(self, folder: Path) -> str:
        """Who holds the folder, in words."""
        newest = _newest(folder)
        owner = _owner(_content(newest)) if newest is not None else {}
        if not owner:
            return "another process"
        return f"process {owner.get('pid')} on {owner.get('host')}"


def take(folder: Path, abandoned: int = 0) -> Claim | None:
    """Claims a folder.

    Args:
        folder: exists.
        abandoned: claims up to this number do not count; see :meth:`Watch.abandoned`.

    Returns:
        None if another process holds the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    owner = _this_process()
    own = folder / f".{PREFIX}{owner['id']}"
    # Written first: an NFS client that changes a folder itself reads it anew.
    _write(own, {**owner, "count": 0})
    try:
        newest = _newest(folder)
        number = _number(newest)
        if newest is not None and number > abandoned and not _is_over(_content(newest)):
            return None
        path = folder / f"{PREFIX}{number + 1}"
        # Where the answer to a link is lost and asked for again, it says that the file exists.
        with suppress(FileExistsError):
            os.link(own, path)
        if own.stat().st_nlink != 2:
            return None
    finally:
        own.unlink()
    if _newest(folder) != path:
        # Others came and went since the folder was read.
        path.unlink()
        return None
    for old in _claims(folder):
        if _number(old) < number:
            old.unlink(missing_ok=True)
    return Claim(path, owner)


def is_claim(path: Path) -> bool:
    """Whether a file of a folder is a claim of it."""
    return path.name.removeprefix(".").startswith(PREFIX)


def _claims(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()]


def _newest(folder: Path) -> Path | None:
    return max(_claims(folder), key=_number, default=None)


def _number(path: Path | None) -> int:
    return int(path.name[len(PREFIX) :]) if path is not None else 0


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _owner(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_over(content: bytes) -> bool:
    """Whether the holder released the claim, or was a process of this machine that has ended."""
    owner = _owner(content)
    if owner.get("released"):
        return True
    if owner.get("machine") != _machine():
        return False
    return owner.get("started") != _started(int(owner["pid"]))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _rewrite(path: Path, content: dict[str, Any]) -> None:
    """Replaces a claim, so that nobody reads half of it; a claim that is gone stays gone."""
    temporary = path.with_name(f".{path.name}-{content['id']}")
    _write(temporary, content)
    if path.exists():
        temporary.replace(path)
    else:
        temporary.unlink()


def _this_process() -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "machine": _machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


@cache
def _machine() -> str:
    """What only processes that can see each other have in common."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        # Two containers on one machine may have processes of the same number.
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine began, or None if there is none: numbers are used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "unknown"
    fields = stat.rpartition(")")[2].split()
    # A process that has ended stays until its parent asks for it.
    return None if fields[0] in "ZX" else fields[19]
