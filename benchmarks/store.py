"""Whether a store of comparisons keeps its promises under load; one run, one JSON file.

    python benchmarks/store.py
    python benchmarks/store.py --store postgresql://USER@HOST/DATABASE --kills 0

First, processes that are annotators claim and answer queries as fast as they can: no answer may be
lost, none doubled, no query answered twice, and nobody may be told that the database is locked.
Then a process that answers from several threads is killed (SIGKILL) at random moments: every answer
that was acknowledged must be there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tether.preferences.records import Answer, Query, Text
from tether.preferences.store import Store

SPAWN = multiprocessing.get_context("spawn")


class Client(Protocol):
    """A way to a store: straight, or through a server."""

    def claim(self, annotator: str, count: int) -> list[tuple[str, str]]:
        """(lease, query) pairs."""
        ...

    def answer(self, query: str, lease: str | None, annotator: str, uuid: str) -> None:
        """Returns when the answer is acknowledged."""
        ...


class Direct:
    """A client without a server."""

    def __init__(self, location: str) -> None:
        self.store = Store.open(location, create=False)

    def claim(self, annotator: str, count: int) -> list[tuple[str, str]]:
        leases = self.store.claim(annotator, count=count, seconds=3600)
        return [(lease.id, lease.query.id) for lease in leases]

    def answer(self, query: str, lease: str | None, annotator: str, uuid: str) -> None:
        self.store.answer(Answer(query, 1.0, annotator, uuid=uuid), lease)


Connect = Callable[[str], Client]
"""Makes a client from a place; a function of a module, so that processes can be given it."""


def fill(store: Store, queries: int) -> list[str]:
    """That many queries about texts."""
    size = next(k for k in itertools.count(2) if k * (k - 1) // 2 >= queries)
    ids = store.add_items(Text("Which is better?", f"Answer {i}.") for i in range(size))
    pairs = itertools.islice(itertools.combinations(ids, 2), queries)
    return store.add_queries(Query(pair) for pair in pairs)


def annotate(
    connect: Connect, place: str, annotator: str, answers: int, at_once: int, acknowledged: str
) -> None:
    """Answers as many queries; writes "uuid query seconds" of each once it is acknowledged."""
    client = connect(place)
    given = 0
    with Path(acknowledged).open("w", encoding="utf-8") as file:
        while given < answers:
            claimed = client.claim(annotator, min(at_once, answers - given))
            if not claimed:
                # PostgreSQL passes over queries that others have just locked.
                time.sleep(0.01)
            for lease, query in claimed:
                mine = str(uuid.uuid4())
                began = time.perf_counter()
                client.answer(query, lease, annotator, mine)
                file.write(f"{mine} {query} {time.perf_counter() - began:.6f}\n")
                given += 1


def load(
    place: str,
    store: Store,
    *,
    annotators: int,
    answers: int,
    at_once: int,
    connect: Connect = Direct,
) -> dict[str, Any]:
    """Annotators that answer at once; raises AssertionError where a promise is broken."""
    fill(store, annotators * answers)
    before = store.newest_cursor()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.txt" for number in range(annotators)]
        processes = [
            SPAWN.Process(
                target=annotate,
                args=(connect, place, f"annotator {n}", answers, at_once, str(file)),
            )
            for n, file in enumerate(files)
        ]
        began = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        seconds = time.perf_counter() - began
        codes = [process.exitcode for process in processes]
        rows = [line.split() for file in files for line in file.read_text().splitlines()]
    assert codes == [0] * annotators, f"processes ended with {codes}"
    log = [answer for _, answer in store.answers(before)]
    kept = [answer.uuid for answer in log]
    assert len(set(kept)) == len(kept), "an answer is there twice"
    assert set(kept) == {row[0] for row in rows}, "answers kept are not those acknowledged"
    assert len({answer.query for answer in log}) == len(log), "a query was answered twice"
    assert len(log) == annotators * answers
    latencies = sorted(float(row[2]) for row in rows)
    return {
        "annotators": annotators,
        "answers": len(log),
        "seconds": round(seconds, 1),
        "answers_per_second": round(len(log) / seconds, 1),
        "milliseconds": {
            name: round(1000 * latencies[min(int(q * len(latencies)), len(latencies) - 1)], 2)
            for name, q in {"median": 0.5, "p99": 0.99, "longest": 1.0}.items()
        },
        "lost": 0,
        "doubled": 0,
    }


def answer_until_killed(
    connect: Connect, place: str, queries: list[str], threads: int, acknowledged: str
) -> None:
    """Answers from several threads; one write, and so one whole line, for each acknowledgement."""
    client = connect(place)
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def answer(number: int) -> None:
        for turn in itertools.count():
            mine = str(uuid.uuid4())
            query = queries[(turn * threads + number) % len(queries)]
            client.answer(query, None, f"annotator {number} {mine}", mine)
            os.write(file, f"{mine}\n".encode())

    workers = [threading.Thread(target=answer, args=(n,), daemon=True) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def kill(
    place: str,
    store: Store,
    *,
    times: int,
    seed: int = 0,
    threads: int = 4,
    connect: Connect = Direct,
) -> dict[str, Any]:
    """Kills a writer at random moments; raises AssertionError if an acknowledged answer is lost."""
    queries = fill(store, 100)
    moments = random.Random(seed)
    total = unacknowledged = 0
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "acknowledged.txt"
            process = SPAWN.Process(
                target=answer_until_killed, args=(connect, place, queries, threads, str(file))
            )
            before = store.newest_cursor()
            process.start()
            assert process.pid is not None
            while not (file.exists() and file.stat().st_size):
                assert process.is_alive(), "the writer ended by itself"
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.3))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            acknowledged = file.read_text().split()
        total += len(acknowledged)
        unacknowledged += kept_besides(store, before, acknowledged)
    return of_kills(times, total, unacknowledged)


def kept_besides(store: Store, before: int, acknowledged: Sequence[str]) -> int:
    """How many answers since `before` were kept and not acknowledged; none may be lost or doubled.

    Raises:
        AssertionError: one is.
    """
    kept = [answer.uuid for _, answer in store.answers(before)]
    assert len(set(kept)) == len(kept), "an answer is there twice"
    lost = set(acknowledged) - set(kept)
    assert not lost, f"{len(lost)} acknowledged answers are lost"
    return len(kept) - len(acknowledged)


def of_kills(times: int, acknowledged: int, unacknowledged: int) -> dict[str, int]:
    return {
        "kills": times,
        "acknowledged": acknowledged,
        "lost": 0,
        "kept_without_acknowledgement": unacknowledged,
    }


def arguments(description: str, killed: str) -> argparse.ArgumentParser:
    """The options that the benchmarks of answers share; `killed` names what --kills ends."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--store", help="a file that does not exist, or a postgresql:// URL of an empty database")
    add("--annotators", type=int, default=8, help="processes (default: 8)")
    add("--answers", type=int, default=10_000, help="of each (default: 10,000)")
    add("--kills", type=int, default=50, help=f"of {killed} (default: 50)")
    add("--out", type=Path, help="a JSON file for the figures")
    return parser


def show(figures: Mapping[str, Any], out: Path | None) -> None:
    """Prints the figures, and writes them to `out`."""
    text = json.dumps(figures, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")


def opened(location: str | None) -> Iterator[tuple[str, Store]]:
    with tempfile.TemporaryDirectory() as folder:
        place = location or str(Path(folder) / "labels.sqlite")
        with Store.open(place) as store:
            yield place, store


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "a writing process")
    add = parser.add_argument
    add("--at-once", type=int, default=10, help="queries claimed at a time (default: 10)")
    args = parser.parse_args()
    for place, store in opened(args.store):
        figures: dict[str, Any] = {"store": store.name if args.store else "SQLite"}
        if args.annotators and args.answers:
            figures["load"] = load(
                place,
                store,
                annotators=args.annotators,
                answers=args.answers,
                at_once=args.at_once,
            )
            print(json.dumps(figures["load"]), file=sys.stderr)
        if args.kills:
            figures["kill"] = kill(place, store, times=args.kills)
            print(json.dumps(figures["kill"]), file=sys.stderr)
    show(figures, args.out)


if __name__ == "__main__":
    main()
