"""Trials on a Ray cluster: one task for each, on whichever machine has a core free.

    tether study figure3 --cluster local            a cluster on this machine alone
    tether study figure3 --cluster 10.0.0.1:6379    the machines of ``ray start``

All machines see the study's folder under the same path. A task whose machine dies is begun again by
Ray on another one, where the trial finds its checkpoint in the folder and goes on from it.

What Ray unpickles may execute anything, so token authentication is on unless the environment says
otherwise: a local cluster has a token of its own, made for it and written nowhere; for another one
the token is where ``ray start`` took it from.

Source:
    Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications" (2018), sections 3
    and 4.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tether.arguments import say
from tether.errors import UserError
from tether.studies.executors import GRACE

T = TypeVar("T")

LOCAL: Final = "local"
RETRIES: Final = 4
"""How often a trial is begun again after its process or machine died."""
OBJECT_STORE: Final = 80 * 2**20
"""Bytes of shared memory of a local cluster; a trial hands over its settings and its result."""


class Cluster:
    """A connection to a Ray cluster, kept until this process ends.

    A study connects once for all its parts, and joins a connection that is there already.
    """

    def __init__(self, address: str, folder: Path) -> None:
        """Connects when it is entered.

        Args:
            address: ``local``, or HOST:PORT as ``ray start`` printed it.
            folder: of the study, on all machines.
        """
        self._address = address
        self._folder = folder.absolute()
        self._marker = self._folder / f".study-{secrets.token_hex(8)}"
        self._running: dict[Future[Any], Any] = {}
        self._tasks: dict[float, Any] = {}

    def __enter__(self) -> Self:
        _connect(self._address)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._marker.touch()
        except OSError as error:
            raise UserError(f"cannot write to {self._folder}: {error.strerror or error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        if kind is not None and not issubclass(kind, Exception):
            for reference in self._running.values():
                # As Ctrl-C does: a training saves a checkpoint and ends.
                ray.cancel(reference)
            wait(self._running, timeout=GRACE)
        else:
            wait(self._running)
        self._marker.unlink(missing_ok=True)

    def slots(self) -> int:
        """The cores of the machines that are there."""
        import ray

        return int(ray.cluster_resources().get("CPU", 0))

    def submit(self, work: Callable[..., T], *arguments: Any, gpus: float = 0.0) -> Future[T]:
        """Begins a task."""
        reference = self._task(gpus).remote(self._marker, Path.cwd(), work, arguments)
        future: Future[T] = Future()
        self._running[future] = reference
        future.add_done_callback(self._forget)
        threading.Thread(target=_fetch, args=(reference, future), daemon=True).start()
        return future

    def _task(self, gpus: float) -> Any:
        import ray

        if gpus not in self._tasks:
            resources = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES}
            self._tasks[gpus] = ray.remote(**resources)(_on_machine)
        return self._tasks[gpus]

    def _forget(self, future: Future[Any]) -> None:
        self._running.pop(future, None)


def _connect(address: str) -> None:
    # Before Ray is imported, which reads them then.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError(
            'a cluster needs the package ray; install it: pip install "tether-rl[scale]"'
        ) from None
    if ray.is_initialized():
        return
    how: dict[str, Any] = {"address": address}
    _check_reachable(address)
    if address == LOCAL:
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        how |= {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
    # Ray puts a handler of its own in this one's place.
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**how, log_to_driver=False, logging_level="ERROR")
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"cannot use a Ray cluster at {address}: it has token authentication, and its token is "
            "not known here or not the same; set RAY_AUTH_TOKEN_PATH to the file of the token that "
            "`ray start` had"
        ) from None
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"cannot use a Ray cluster at {address}: {reason}; expected local, or the HOST:PORT "
            "that `ray start --head` prints"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    resources = ray.cluster_resources()
    say(f"Ray cluster {address}: {len(ray.nodes())} machines, {resources.get('CPU', 0):g} cores")


def _check_reachable(address: str) -> None:
    """Whether anybody listens there: Ray itself tries for more than a minute."""
    host, _, port = address.rpartition(":")
    if address == LOCAL or "://" in address:
        return
    if not host or not port.isdigit():
        raise UserError(
            f"--cluster is {address!r}; expected local, or the HOST:PORT that `ray start --head` "
            "prints"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot reach a Ray cluster at {address}: {reason}; expected local, or the HOST:PORT "
            "that `ray start --head` prints"
        ) from None


def _on_machine(marker: Path, home: Path, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """Runs in a process of the cluster."""
    if not marker.exists():
        raise UserError(
            f"machine {socket.gethostname()} does not see {marker.parent}; with --cluster every "
            "machine needs the folder --out under the same path"
        )
    # So that paths in settings mean what they mean where the command was given.
    with suppress(OSError):
        os.chdir(home)
    return work(*arguments)


def _fetch(reference: Any, future: Future[Any]) -> None:
    """Waits for a task, and gives its end to the future."""
    import ray

    try:
        future.set_result(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        future.set_exception(error.cause)
    except ray.exceptions.TaskCancelledError:
        future.set_exception(KeyboardInterrupt())
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        future.set_exception(
            UserError(
                f"the cluster gave up a trial: {reason}; give the command again to go on from its "
                "checkpoint"
            )
        )
    except BaseException as error:
        future.set_exception(error)
