"""Whether the labelling server keeps its promises under load; one run, one JSON file.

    python benchmarks/label.py
    python benchmarks/label.py --store postgresql://USER@HOST/DATABASE

First, processes that are annotators claim and answer over HTTP as fast as they can: no answer may
be lost, none doubled, no query answered twice. Then the server is killed (SIGKILL) at random
moments while threads answer: every answer that it acknowledged must be in the store. All of it
stays on the loopback.
"""

from __future__ import annotations

import functools
import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from store import arguments, fill, kept_besides, load, of_kills, opened, show

CLAIMED = 8


class Browser:
    """The requests of the page, over one connection that is kept."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self.connection.request("GET", f"{parts.path}?{parts.query}")
        reply = self.connection.getresponse()
        reply.read()
        assert reply.status == 200, reply.status
        cookie = (reply.getheader("Set-Cookie") or "").partition(";")[0]
        self.headers = {
            "Cookie": cookie,
            "Origin": f"http://{parts.netloc}",
            "Content-Type": "application/json",
        }

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.connection.request("POST", path, json.dumps(body), self.headers)
        reply = self.connection.getresponse()
        content = reply.read()
        assert reply.status == 200, f"{path}: {reply.status} {content.decode()[:300]}"
        return json.loads(content)

    def claim(self, annotator: str, count: int) -> list[tuple[str, str]]:
        body = {"annotator": annotator, "count": min(count, CLAIMED)}
        return [(p["lease"], p["query"]) for p in self.post("/api/next", body)["pairs"]]

    def answer(self, query: str, lease: str | None, annotator: str, uuid: str) -> None:
        body = {"query": query, "lease": lease, "annotator": annotator, "uuid": uuid}
        self.post("/api/answers", {**body, "preference": 1.0})


@contextmanager
def served(place: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tether label` over a store, and its address."""
    command = [sys.executable, "-m", "tether", "label", place, "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--lease", "3600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stdout.close()


def kill(place: str, store: Any, *, times: int, seed: int = 0, threads: int = 4) -> dict[str, Any]:
    """Kills the server at random moments; AssertionError if an acknowledged answer is lost."""
    queries = fill(store, 100)
    moments = random.Random(seed)
    total = unacknowledged = 0
    for _ in range(times):
        before = store.newest_cursor()
        acknowledged: list[str] = []
        with served(place) as (process, url):
            answer = functools.partial(answer_until_it_ends, url, queries, acknowledged)
            workers = [threading.Thread(target=answer, args=(n,)) for n in range(threads)]
            for worker in workers:
                worker.start()
            while not acknowledged:
                assert process.poll() is None, "the server ended by itself"
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
            for worker in workers:
                worker.join()
        total += len(acknowledged)
        unacknowledged += kept_besides(store, before, acknowledged)
    return of_kills(times, total, unacknowledged)


def answer_until_it_ends(url: str, queries: list[str], acknowledged: list[str], n: int) -> None:
    browser = Browser(url)
    turn = 0
    while True:
        mine = str(uuid.uuid4())
        query = queries[(4 * turn + n) % len(queries)]
        try:
            browser.answer(query, None, f"annotator {n} {mine[:8]}", mine)
        except (OSError, http.client.HTTPException):
            return
        acknowledged.append(mine)
        turn += 1


def main() -> None:
    args = arguments(__doc__.splitlines()[0], "the server").parse_args()
    for place, store in opened(args.store):
        figures: dict[str, Any] = {"store": store.name if args.store else "SQLite"}
        if args.annotators and args.answers:
            with served(place) as (_, url):
                figures["load"] = load(
                    url,
                    store,
                    annotators=args.annotators,
                    answers=args.answers,
                    at_once=CLAIMED,
                    connect=Browser,
                )
            print(json.dumps(figures["load"]), file=sys.stderr)
        if args.kills:
            figures["kill"] = kill(place, store, times=args.kills)
            print(json.dumps(figures["kill"]), file=sys.stderr)
    show(figures, args.out)


if __name__ == "__main__":
    main()
