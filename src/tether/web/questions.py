"""What the server asks of the store: comparisons ready to be shown, answers kept, progress."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tether.errors import UserError
from tether.preferences.records import Answer, Segment, Text
from tether.preferences.store import Store
from tether.web.messages import (
    AnswerReply,
    AnswerRequest,
    ItemReply,
    NextReply,
    NextRequest,
    Pair,
    PolicyClip,
    ProgressReply,
    ReleaseReply,
    ReleaseRequest,
    SessionReply,
    Turn,
    UndoReply,
    UndoRequest,
)
from tether.web.rendering import Priority, Renderer

if TYPE_CHECKING:
    from tether.control.drawing import Format
    from tether.preferences.replies import Lease

_SKIPPED_FOR: Final = 600.0
"""Seconds until a skipped comparison may come back to the one who skipped it."""
_PACE_OVER: Final = 300.0
"""Seconds over which a pace is measured."""
_COUNTS_FOR: Final = 0.5
"""Seconds for which counts are good enough; counting reads the whole store."""
_ITEMS_KEPT: Final = 512


class UnknownError(UserError):
    """The store has nothing of this id."""


class Questions:
    """A store, as the page sees it. Any number of threads may call it.

    Attributes:
        store: the store.
        lease_seconds: how long a comparison is an annotator's without a sign of them.
    """

    def __init__(
        self,
        store: Store,
        renderer: Renderer,
        *,
        identity: str,
        title: str = "",
        overlap: int = 1,
        goal: int | None = None,
        lease_seconds: float = 120.0,
    ) -> None:
        """Looks at a store.

        Args:
            store: what is labelled.
            renderer: what draws its clips.
            identity: names the store to browsers.
            title: what is compared; the environment of the first comparison if empty.
            overlap: how many annotators are to answer each comparison.
            goal: how many labels are wanted; what the store's note says if None.
            lease_seconds: how long a comparison is an annotator's without a sign of them.
        """
        self.store = store
        self.lease_seconds = lease_seconds
        self._renderer = renderer
        self._identity = identity
        self._title = title
        self._overlap = overlap
        self._goal = goal
        self._lock = threading.Lock()
        self._skipped: dict[str, dict[str, float]] = {}
        self._times: dict[str, deque[float]] = {}
        self._mine: dict[str, int] = {}
        self._items: OrderedDict[str, Segment | Text] = OrderedDict()
        self._counts: tuple[float, Any] = (-1e9, None)

    def session(self) -> SessionReply:
        """What a page needs to begin."""
        notes = self.store.notes()
        return SessionReply(
            store=self._identity,
            title=self._title,
            instruction=str(notes.get("instruction") or "")[:2000],
            goal=self._wanted(notes),
            poll=max(1.0, self.lease_seconds / 4),
        )

    def next(self, asked: NextRequest) -> NextReply:
        """Leases comparisons, and has their clips drawn."""
        leases = self.store.claim(
            asked.annotator,
            count=asked.count,
            seconds=self.lease_seconds,
            overlap=self._overlap,
            without=self._skips(asked.annotator),
        )
        self._remember([item for lease in leases for item in lease.query.items])
        pairs = [
            self._pair(lease, asked.format, Priority.NEXT if i else Priority.SHOWN)
            for i, lease in enumerate(leases)
        ]
        return NextReply(pairs=pairs, why=None if pairs else self._why(asked.annotator))

    def answer(self, given: AnswerRequest) -> AnswerReply:
        """Keeps an answer; when this returns it is on the disk.

        Raises:
            UnknownError: no such comparison.
            UserError: an answer that does not fit it.
        """
        now = time.time()
        answer = Answer(
            query=given.query,
            preference=given.preference,
            ranking=None if given.ranking is None else tuple(given.ranking),
            annotator=given.annotator,
            uuid=given.uuid,
            # A browser's clock may be wrong, but only it knows when an answer was given that an
            # outage has held up.
            time=now if given.time is None else min(given.time, now),
            latency=given.latency,
        )
        try:
            receipt = self.store.answer(answer, given.lease)
        except UserError as error:
            if str(error) != f"the store has no query {given.query}":
                raise
            raise UnknownError(f"the store has no comparison {given.query}") from error
        if not receipt.duplicate:
            self._count(given.annotator, 1)
        return AnswerReply(cursor=receipt.cursor, late=receipt.late, duplicate=receipt.duplicate)

    def undo(self, asked: UndoRequest) -> UndoReply:
        """Takes back an annotator's newest answer, and leases its comparison to them again."""
        taken = self.store.undo(asked.annotator, asked.uuid)
        if taken is None:
            return UndoReply(pair=None)
        self._count(asked.annotator, -1)
        leases = self.store.claim(
            asked.annotator,
            seconds=self.lease_seconds,
            overlap=self._overlap,
            only=taken.query,
        )
        if not leases:
            return UndoReply(pair=None)
        return UndoReply(pair=self._pair(leases[0], "mp4", None))

    def release(self, asked: ReleaseRequest) -> ReleaseReply:
        """Gives a comparison back; a skipped one is not offered to its annotator for a while."""
        if asked.skip:
            with self._lock:
                self._skipped.setdefault(asked.annotator, {})[asked.query] = time.monotonic()
        return ReleaseReply(released=self.store.release(asked.lease))

    def progress(self, annotator: str) -> ProgressReply:
        """How far the labelling has come."""
        counts = self._counted()
        with self._lock:
            mine = self._mine.get(annotator)
        if mine is None:
            mine = sum(a.answers for a in self.store.annotators() if a.annotator == annotator)
            with self._lock:
                mine = self._mine.setdefault(annotator, mine)
        return ProgressReply(
            queries=counts.queries,
            answered=counts.answered,
            open=counts.open + counts.leased,
            annotators=counts.annotators,
            goal=self._wanted(self.store.notes()),
            mine=mine,
            per_minute=self._pace(annotator),
        )

    def clip(self, item: str, format: Format, priority: Priority) -> Future[Path]:
        """The clip of an item, made or being made.

        Raises:
            UnknownError: the store has no segment of this id.
        """
        found = self._item(item)
        if not isinstance(found, Segment):
            raise UnknownError(f"item {item} is a text, which has no clip")
        return self._renderer.clip(found, format, priority)

    def policy(self) -> PolicyClip | None:
        """The newest segment that was asked about: the policy as it is now."""
        query = self.store.newest_query()
        if query is None:
            return None
        newest = self._item(query.items[-1])
        if not isinstance(newest, Segment):
            return None
        return PolicyClip(item=query.items[-1], step=max(query.step, newest.step))

    def warm_up(self) -> None:
        """Begins to draw the newest clip, if there is one."""
        newest = self.policy()
        if newest is not None:
            self.clip(newest.item, "mp4", Priority.POLICY)

    def _pair(self, lease: Lease, format: Format, priority: Priority | None) -> Pair:
        query = lease.query
        items = [self._item(item) for item in query.items]
        if priority is not None:
            for item in items:
                if isinstance(item, Segment):
                    self._renderer.clip(item, format, priority)
        return Pair(
            query=query.id,
            lease=lease.id,
            seconds=max(0.0, lease.expires - time.time()),
            context=query.context,
            items=[_shown(i, item) for i, item in zip(query.items, items, strict=True)],
        )

    def _item(self, item: str) -> Segment | Text:
        with self._lock:
            if item in self._items:
                self._items.move_to_end(item)
                return self._items[item]
        try:
            self._remember([item])
        except UserError as error:
            if "has no item" not in str(error):
                raise
            raise UnknownError(f"the store has no item {item}") from error
        with self._lock:
            return self._items[item]

    def _remember(self, items: Sequence[str]) -> None:
        """Reads those items that are not kept, in one go; the newest are kept."""
        with self._lock:
            for item in items:
                if item in self._items:
                    self._items.move_to_end(item)
            missing = [item for item in dict.fromkeys(items) if item not in self._items]
        if not missing:
            return
        found = self.store.items(missing)
        with self._lock:
            self._items.update(zip(missing, found, strict=True))
            while len(self._items) > _ITEMS_KEPT:
                self._items.popitem(last=False)

    def _skips(self, annotator: str) -> Collection[str]:
        before = time.monotonic() - _SKIPPED_FOR
        with self._lock:
            mine = self._skipped.get(annotator, {})
            for query in [q for q, when in mine.items() if when < before]:
                del mine[query]
            return list(mine)

    def _why(self, annotator: str) -> Literal["asking", "others", "skipped", "done"]:
        counts = self._counted()
        goal = self._wanted(self.store.notes())
        if self._skips(annotator) and counts.open:
            return "skipped"
        if counts.leased:
            return "others"
        if goal is not None and counts.answered >= goal:
            return "done"
        return "asking"

    def _wanted(self, notes: dict[str, Any]) -> int | None:
        if self._goal is not None:
            return self._goal
        noted = notes.get("goal")
        return noted if isinstance(noted, int) and noted > 0 else None

    def _counted(self) -> Any:
        with self._lock:
            when, counts = self._counts
        if time.monotonic() - when > _COUNTS_FOR:
            counts = self.store.counts()
            with self._lock:
                self._counts = (time.monotonic(), counts)
        return counts

    def _count(self, annotator: str, change: int) -> None:
        with self._lock:
            if annotator in self._mine:
                self._mine[annotator] = max(0, self._mine[annotator] + change)
            self._counts = (-1e9, None)
            times = self._times.setdefault(annotator, deque(maxlen=30))
            if change > 0:
                times.append(time.monotonic())
            elif times:
                times.pop()

    def _pace(self, annotator: str) -> float | None:
        """Answers a minute over the last ones; None: too few of late to tell."""
        since = time.monotonic() - _PACE_OVER
        with self._lock:
            times = [when for when in self._times.get(annotator, ()) if when > since]
        if len(times) < 3:
            return None
        return 60 * (len(times) - 1) / max(times[-1] - times[0], 1e-3)


def _shown(item: str, found: Segment | Text) -> ItemReply:
    """What is sent to the page about an item: never its reward, nor where it comes from."""
    if isinstance(found, Segment):
        return ItemReply(id=item, kind="clip")
    prompt = found.prompt
    turns = (
        [Turn(role="", content=prompt)]
        if isinstance(prompt, str)
        else [Turn(role=str(t["role"]), content=str(t["content"])) for t in prompt]
    )
    shown = [turn for turn in turns if turn.content]
    return ItemReply(id=item, kind="text", prompt=shown, completion=found.completion)
