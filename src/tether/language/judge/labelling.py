"""Labels for pairs: judged in chunks that are kept, audited, resumed without paying twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tether.errors import Interrupted, JudgeError
from tether.language.data.fields import Text
from tether.language.judge.audit import Failure, Observations
from tether.language.judge.judgements import with_cache
from tether.language.judge.judges import Judge, Judgement
from tether.language.judge.server import ServerError
from tether.learning.signals import StopRequest

CHUNK = 32
"""Pairs that are judged together; after each chunk what was said is on the disk."""


class Pair(NamedTuple):
    """Two completions of a prompt.

    Attributes:
        place: the file and row, named in errors.
        prompt: a text or a conversation.
        first: one completion.
        second: the other.
        human: probability that the first is better, as people see it, if they were asked.
    """

    place: str
    prompt: Text
    first: str
    second: str
    human: float | None = None


class Labelled(NamedTuple):
    """What came of a labelling.

    Attributes:
        labels: probability that the first of each pair is better; None where the judge failed.
        seen: what the audit is made of.
        paid: judgements that were made now.
        known: judgements that an earlier labelling had made.
    """

    labels: list[float | None]
    seen: Observations
    paid: int
    known: int


def label(
    judge: Judge,
    pairs: Sequence[Pair],
    *,
    skip_failed: bool = False,
    on_chunk: Callable[[int, Sequence[float | None]], None] | None = None,
    folder: Path | None = None,
) -> Labelled:
    """Labels pairs; every judgement is kept as soon as it is made.

    Args:
        judge: who labels; its cache is put before it.
        pairs: to label.
        skip_failed: name pairs that cannot be judged in the audit, instead of stopping at one.
        on_chunk: called with the number of pairs that are done and the labels of the last of them.
        folder: keeps the judgements; None: the user's cache.

    Raises:
        JudgeError: a pair cannot be judged, or the server can be asked no more.
        Interrupted: Ctrl-C or SIGTERM; what was judged is kept.
    """
    seen, labels = Observations(), list[float | None]()
    uncached = judge.ask
    judgements = with_cache(judge, folder)
    try:
        with StopRequest() as stop:
            for start in range(0, len(pairs), CHUNK):
                chunk = pairs[start : start + CHUNK]
                found = _chunk(judge, chunk, seen, skip_failed=skip_failed)
                labels += found
                if on_chunk is not None:
                    on_chunk(len(labels), found)
                if stop.received is not None and len(labels) < len(pairs):
                    raise Interrupted("stopped; the same command goes on where this one stopped")
    finally:
        judge.ask = uncached
        judgements.close()
    return Labelled(labels, seen, judgements.paid, judgements.known)


def _chunk(
    judge: Judge, pairs: Sequence[Pair], seen: Observations, *, skip_failed: bool
) -> list[float | None]:
    asked = [one for p in pairs for one in judge.both(p.prompt, p.first, p.second)]
    said = judge.ask(asked)
    found: list[float | None] = []
    for pair, one, other in zip(pairs, said[::2], said[1::2], strict=True):
        if isinstance(one, Judgement) and isinstance(other, Judgement):
            probability = judge.probability(one, other)
            seen.add(probability, (one, other), (pair.first, pair.second), pair.human)
            found.append(probability)
            continue
        error = one if isinstance(one, JudgeError) else other
        if isinstance(error, ServerError):
            raise ServerError(f"{error}; what was judged is kept: the same command goes on")
        if not skip_failed:
            raise JudgeError(f"{pair.place}: {error} (--skip-bad leaves out what cannot be judged)")
        seen.failures.append(Failure(pair.place, str(error)))
        found.append(None)
    return found
