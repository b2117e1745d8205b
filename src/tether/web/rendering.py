"""Clips are drawn by a process of their own, what a person waits for before what comes next."""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from enum import IntEnum
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tether.errors import UserError

if TYPE_CHECKING:
    from tether.control.drawing import Format
    from tether.preferences.records import Segment


class Priority(IntEnum):
    """Who waits for a clip; the lower is drawn first."""

    SHOWN = 0
    NEXT = 1
    POLICY = 2


class ClipMaker(Protocol):
    """What draws: :class:`tether.control.clips.Clips`, which is sent to the process that does."""

    def path(self, item: str, format: Format) -> Path:
        """Where a clip is kept, made or not."""

    def make(self, segment: Segment, format: Format) -> Path:
        """Draws it, unless it is there."""


@dataclass
class _Job:
    segment: Segment
    format: Format
    priority: Priority
    future: Future[Path] = field(default_factory=Future)
    begun: bool = False


class Renderer:
    """Draws clips one after another in a worker process; the server never waits for it.

    The process is started with the first clip and again after it was lost (a driver may end it).
    """

    def __init__(self, clips: ClipMaker) -> None:
        """Starts the thread that hands out the work; :meth:`close` ends it."""
        self._clips = clips
        self._jobs: dict[Path, _Job] = {}
        self._order: list[tuple[int, int, _Job | None]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._pool: ProcessPoolExecutor | None = None
        self._thread = threading.Thread(target=self._work, name="clips", daemon=True)
        self._thread.start()

    def clip(self, segment: Segment, format: Format, priority: Priority) -> Future[Path]:
        """The clip of a segment, made or being made.

        Args:
            segment: what it shows.
            format: "mp4" or "webm".
            priority: asked again with a lower one, a clip that waits moves forward.

        Returns:
            A future of its file; of a :class:`UserError` if it cannot be drawn, of an ``OSError``
            if it cannot be written.
        """
        path = self._clips.path(segment.id, format)
        if path.exists():
            ready: Future[Path] = Future()
            ready.set_result(path)
            return ready
        with self._changed:
            job = self._jobs.get(path)
            if job is None or (not job.begun and priority < job.priority):
                job = self._jobs.setdefault(path, _Job(segment, format, priority))
                job.priority = priority
                heapq.heappush(self._order, (priority, next(self._count), job))
                self._changed.notify()
            return job.future

    def close(self) -> None:
        """Ends the process and the thread; what is being drawn is dropped, and leaves no file."""
        with self._changed:
            heapq.heappush(self._order, (-1, next(self._count), None))
            self._changed.notify()
        self._stop_pool()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._order:
                    self._changed.wait()
                job = heapq.heappop(self._order)[2]
                if job is None:
                    break
                if job.begun:
                    continue
                job.begun = True
            try:
                job.future.set_result(self._draw(job))
            except BaseException as error:
                job.future.set_exception(error)
            with self._changed:
                del self._jobs[self._clips.path(job.segment.id, job.format)]
        self._stop_pool()
        with self._changed:
            for job in self._jobs.values():
                if not job.future.done():
                    job.future.set_exception(UserError("the server is ending"))

    def _draw(self, job: _Job) -> Path:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_worker)
        try:
            return self._pool.submit(self._clips.make, job.segment, job.format).result()
        except (BrokenProcessPool, RuntimeError) as error:
            self._stop_pool()
            raise UserError(
                "the process that draws clips has ended unexpectedly, as graphics drivers may make "
                "it; reload the page to try again, or install OSMesa and set MUJOCO_GL=osmesa"
            ) from error

    def _stop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes: dict[int, Any] = dict(getattr(pool, "_processes", None) or {})
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes.values():
            process.kill()


def _prepare_worker() -> None:
    """In the process that draws: it ends with the server, however that ends, and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel, os._exit), daemon=True).start()


def _end_with(sentinel: int, end: Callable[[int], Any]) -> None:
    wait([sentinel])
    end(1)
