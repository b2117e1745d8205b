"""Lists in parts: records to learn from and to measure on, a batch in micro-batches."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

from tether.errors import UserError
from tether.language.runtime.processes import processes

MOST_HELD_OUT: Final = 512
"""Records to measure on, at most: an accuracy is then known to 2 %."""


class _Prompted(Protocol):
    @property
    def prompt_ids(self) -> Sequence[int]: ...


P = TypeVar("P", bound=_Prompted)


def split(data: Sequence[P], share: float) -> tuple[list[P], list[P]]:
    """Records to learn from, and records to measure on.

    All records of a prompt land on one side, so that nothing learned about a prompt helps to
    recognize its answers. Which side follows from the tokens alone, not from order or seed. If all
    have one and the same prompt, they are split one by one. No more are held out than can be
    measured often.

    Args:
        data: any records with prompts.
        share: of the prompts to hold out, in [0, 1). Unless zero, at least one prompt is held out;
            at least one is left. Beyond the first, no prompt is held out that would make the
            records more than :data:`MOST_HELD_OUT`.

    Raises:
        UserError: there are not two to tell apart.
    """
    if not share:
        return list(data), []
    keys = [_digest(record.prompt_ids) for record in data]
    if len(set(keys)) < 2:
        keys = [_digest(record) for record in data]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise UserError(
            f"held_out is {share}, but the data hold nothing to split ({len(data)} records, all "
            "alike); give more data, or held_out 0"
        )
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    sizes = Counter(keys)
    totals = list(itertools.accumulate(sizes[key] for key in distinct[:count]))
    apart = set(distinct[: max(1, sum(total <= MOST_HELD_OUT for total in totals))])
    sides: tuple[list[P], list[P]] = ([], [])
    for record, key in zip(data, keys, strict=True):
        sides[key in apart].append(record)
    return sides


def micro_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places in a batch, at most `size` at a time, longest first, so that little is padded.

    Of several processes that learn together, each gets its share.
    """
    order = processes().share(sorted(range(len(lengths)), key=lambda i: -lengths[i]))
    for start in range(0, len(order), size):
        yield list(order[start : start + size])


def _digest(tokens: object) -> bytes:
    return hashlib.sha256(repr(tokens).encode()).digest()
