"""Where trials are carried out: in this process, or in processes beside it.

A cluster is a third place; see :mod:`tether.studies.cluster`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from tether.errors import UserError

T = TypeVar("T")

GRACE: Final = 60.0
"""Seconds that a process has for a checkpoint when its study ends."""


class Executor(Protocol):
    """Carries out functions of modules; entered and left as a context."""

    def __enter__(self) -> Self:
        """Starts what is needed."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends what is under way: with a result, or with a checkpoint where it was interrupted."""

    def slots(self) -> int:
        """How many functions can run at a time, at present."""

    def submit(self, work: Callable[..., T], *arguments: Any, gpus: float = 0.0) -> Future[T]:
        """Begins `work(*arguments)`; `gpus` is what it needs besides one core."""


class ThisProcess:
    """One after the other, with all threads; what a trial raises is raised by `submit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def slots(self) -> int:
        """One."""
        return 1

    def submit(self, work: Callable[..., T], *arguments: Any, gpus: float = 0.0) -> Future[T]:
        """Does the work before it returns."""
        future: Future[T] = Future()
        future.set_result(work(*arguments))
        return future


class Processes:
    """Fresh processes of this machine, each with one thread."""

    def __init__(self, workers: int) -> None:
        """Begins no process yet.

        Args:
            workers: how many.
        """
        self._workers = workers
        self._parent = os.getpid()
        # A forked copy of a process with threads may hang; a fresh one cannot.
        self._pool = ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._parent,),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if kind is not None and issubclass(kind, BrokenProcessPool):
            raise UserError(
                "a process of the study was killed, perhaps for lack of memory; give the command "
                "again to go on, with fewer --workers if it happens again"
            ) from None

    def slots(self) -> int:
        """The number of processes."""
        return self._workers

    def submit(self, work: Callable[..., T], *arguments: Any, gpus: float = 0.0) -> Future[T]:
        """Hands the work to a process."""
        return self._pool.submit(_work, self._parent, work, *arguments)


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


def _work(parent: int, work: Callable[..., T], *arguments: Any) -> T:
    if os.getppid() != parent:
        os._exit(1)
    try:
        return work(*arguments)
    finally:
        # An orphan has saved what there was to save.
        if os.getppid() != parent:
            os._exit(1)
