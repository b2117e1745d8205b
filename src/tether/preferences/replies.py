"""What a store replies: leases, receipts, counts."""

from __future__ import annotations

from dataclasses import dataclass

from tether.preferences.records import Query


@dataclass(frozen=True)
class Lease:
    """A query that one annotator is looking at, and nobody else is given.

    Attributes:
        id: 32 hexadecimal digits.
        query: the query.
        annotator: who holds it.
        expires: seconds since 1970 after which it may be given to others.
    """

    id: str
    query: Query
    annotator: str
    expires: float


@dataclass(frozen=True)
class Receipt:
    """An answer is on the disk.

    Attributes:
        cursor: its place in the log.
        late: the lease it was given under had run out when it came; it counts all the same.
        duplicate: it was there already.
    """

    cursor: int
    late: bool
    duplicate: bool


@dataclass(frozen=True)
class Counts:
    """How far a store has got. Every query is answered, skipped, leased or open.

    Attributes:
        queries: all of them.
        answered: have a standing answer that prefers, ranks or calls a tie.
        skipped: have standing answers, but all of them can't tell.
        leased: have no standing answer, and somebody is looking at them.
        open: wait for somebody.
        annotators: who have given an answer, be it retracted.
    """

    queries: int
    answered: int
    skipped: int
    leased: int
    open: int
    annotators: int


@dataclass(frozen=True)
class AnnotatorSummary:
    """What one annotator has done.

    Attributes:
        annotator: the name.
        answers: standing answers that prefer, rank or call a tie.
        ties: those of them that call a tie.
        skipped: standing answers that can't tell.
        retracted: answers taken back.
        late: rows that came after their lease had run out.
        seconds: median of the latencies; None: no latency is known.
        last: time of the newest row, in seconds since 1970.
    """

    annotator: str
    answers: int
    ties: int
    skipped: int
    retracted: int
    late: int
    seconds: float | None
    last: float
