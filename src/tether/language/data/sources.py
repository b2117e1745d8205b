"""Rows of a data set, wherever it is kept: a file, a store of comparisons, the hub, built in.

Files are read row by row, so memory does not grow with them, and a row that is too long is refused
before the rest of it is read.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from tether.errors import UserError
from tether.language.runtime.paths import expanded, is_file, is_folder, short
from tether.preferences.export import pair_rows
from tether.preferences.places import is_store, store_in
from tether.preferences.store import Store

MOVIE_REVIEWS: Final = "movie-reviews"
"""The built-in data set: film reviews to imitate, in pairs to compare, or with a verdict."""

LONGEST_ROW: Final = 16 * 2**20
"""Bytes of one row; far more than a model's context holds, far less than memory."""

_BATCH_ROWS: Final = 256
_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")

DataLike: TypeAlias = "str | Path | Sequence[Mapping[str, Any]] | Any"
"""A file, a hub id, ``movie-reviews``, a store of comparisons, a list of dicts, or an object of the
`datasets` library."""


class Row(NamedTuple):
    """One row and where it is, as an error names it."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A data set that can be read from its beginning as often as needed.

    Attributes:
        name: as errors name it.
        columns: of the first row.
        read: starts anew at each call.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Row]]


def open_source(data: DataLike, *, split: str = "train", longest: int = LONGEST_ROW) -> Source:
    """Finds a data set and looks at its first row.

    Args:
        data: a ``.jsonl`` or ``.parquet`` file, a hub id (``owner/name`` or
            ``owner/name:configuration``), a store of comparisons (a file, a ``postgresql://`` URL,
            the folder of a run that has one, or a `Store`), a `Dataset`, `IterableDataset` or
            `DatasetDict`, or a list of dicts.
        split: which part of a `DatasetDict` or of a data set on the hub.
        longest: bytes a row of a file may have.

    Raises:
        UserError: not found, not readable, empty, or of an unknown kind.
    """
    if isinstance(data, Store):
        name, read = data.name, _store_reader(data)
    elif isinstance(data, str | Path):
        path = expanded(data)
        if is_store(data):
            name, read = _stored(data)
        elif is_file(path):
            name, read = str(path), _file_reader(path, longest)
        elif is_folder(path):
            raise UserError(f"data {path} is a folder; give one .jsonl or .parquet file in it")
        elif path.suffix or not _HUB_ID.fullmatch(str(data)):
            raise UserError(f"there is no data file {short(path)}")
        else:
            name, read = str(data), _hub_reader(str(data), split)
    elif isinstance(data, Mapping):
        if split not in data:
            raise UserError(f"the data has no split {split!r}; it has: {', '.join(map(str, data))}")
        return open_source(data[split], longest=longest)
    elif isinstance(data, Iterable) and not isinstance(data, Iterator):
        name, read = "data", _object_reader(data)
    else:
        raise UserError(
            f"data is a {type(data).__name__}; expected a file, a hub id, a datasets.Dataset or a "
            "list of dicts"
        )
    first = next(read(), None)
    if first is None:
        raise UserError(f"data {name} is empty")
    return Source(name, tuple(first.values), read)


def movie_reviews(columns: Sequence[str], *, split: str = "train") -> Source:
    """The film reviews as rows of the columns asked for.

    - ``text``: the review;
    - ``chosen, rejected``: a positive and a negative review of one source, so that what is
      preferred is the sentiment and not the style;
    - ``prompt, completion, label``: nothing, the review, and whether it is positive.

    Args:
        columns: one of the three lists above.
        split: ``"train"`` or ``"held_out"``.

    Raises:
        UserError: another split.
    """
    from tether.language.reviews.corpus import load_reviews

    reviews = load_reviews().part(split)

    def rows() -> Iterator[dict[str, Any]]:
        if "chosen" in columns:
            waiting: dict[tuple[str, bool], deque[str]] = defaultdict(deque)
            for review in reviews:
                others = waiting[review.source, not review.positive]
                if not others:
                    waiting[review.source, review.positive].append(review.text)
                    continue
                pair = (review.text, others.popleft())
                chosen, rejected = pair if review.positive else pair[::-1]
                yield {"chosen": chosen, "rejected": rejected}
        elif "label" in columns:
            for review in reviews:
                yield {"prompt": "", "completion": review.text, "label": review.positive}
        else:
            for review in reviews:
                yield {"text": review.text}

    def read() -> Iterator[Row]:
        for number, values in enumerate(rows(), start=1):
            yield Row(f"{MOVIE_REVIEWS}, row {number}", values)

    return Source(MOVIE_REVIEWS, tuple(columns), read)


def _file_reader(path: Path, longest: int) -> Callable[[], Iterator[Row]]:
    if path.suffix in (".jsonl", ".ndjson", ".json"):
        return lambda: _json_lines(path, longest)
    if path.suffix in (".parquet", ".pq"):
        return lambda: _parquet(path, longest)
    raise UserError(
        f"data {path} ends in {path.suffix or 'nothing'!r}; expected .jsonl (one JSON object per "
        "line) or .parquet"
    )


def _json_lines(path: Path, longest: int) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            number = 0
            # One byte more than is allowed tells a long line from one that just fits.
            while line := file.readline(longest + 1):
                number += 1
                place = f"{path}, line {number}"
                if len(line.rstrip(b"\n")) > longest:
                    raise UserError(
                        f"{place}: longer than {longest:,} bytes; is this one JSON object per line?"
                    )
                if line.strip():
                    yield Row(place, _json_object(line, place, first=number == 1))
    except OSError as error:
        raise UserError(f"cannot read data {path}: {error.strerror or error}") from error


def _json_object(line: bytes, place: str, *, first: bool) -> Mapping[str, Any]:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if first and text.lstrip().startswith("["):
            raise UserError(
                f"{place}: the file is one JSON array; write one object per line instead"
            ) from None
        raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: a {type(value).__name__}; expected a JSON object such as "
            '{"prompt": "...", "completion": "..."}'
        )
    return value


def _parquet(path: Path, longest: int) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                if batch.nbytes > longest:
                    _refuse_long_rows(batch, path, number, longest)
                for values in _plain_rows(batch, path, number):
                    number += 1
                    yield Row(f"{path}, row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read data {path}: {' '.join(str(error).split())[:200]}") from error


def _refuse_long_rows(batch: Any, path: Path, before: int, longest: int) -> None:
    for index in range(batch.num_rows):
        if batch.slice(index, 1).nbytes > longest:
            raise UserError(f"{path}, row {before + index + 1}: longer than {longest:,} bytes")


def _plain_rows(batch: Any, path: Path, before: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            for field in batch.schema.names:
                try:
                    batch.column(field)[index].as_py()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, row {before + index + 1}, field {field!r}: byte "
                        f"{error.start + 1} is not UTF-8"
                    ) from None
        raise


def _object_reader(data: Iterable[Any]) -> Callable[[], Iterator[Row]]:
    def read() -> Iterator[Row]:
        for number, values in enumerate(data, start=1):
            if not isinstance(values, Mapping):
                raise UserError(
                    f"data, row {number}: a {type(values).__name__}; expected a dict of columns"
                )
            yield Row(f"data, row {number}", values)

    return read


def _stored(location: str | Path) -> tuple[str, Callable[[], Iterator[Row]]]:
    with Store.open(store_in(location), create=False) as store:
        name = store.name

    def read() -> Iterator[Row]:
        with Store.open(store_in(location), create=False) as store:
            yield from _store_reader(store)()

    return name, read


def _store_reader(store: Store) -> Callable[[], Iterator[Row]]:
    """Rows of what people and other teachers have said of pairs of texts."""

    def read() -> Iterator[Row]:
        for number, values in enumerate(pair_rows(store), start=1):
            yield Row(f"{store.name}, comparison {number}", values)

    return read


def _hub_reader(name: str, split: str) -> Callable[[], Iterator[Row]]:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(
            repository, configuration or None, split=split, streaming=True
        )
    # The hub's client raises errors of a dozen families; for the user they are all one.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"data {name!r} is neither a file nor {MOVIE_REVIEWS!r}, and the Hugging Face hub did "
            f"not give it: {reason}"
        ) from error

    def read() -> Iterator[Row]:
        for number, values in enumerate(found, start=1):
            yield Row(f"{name}, row {number}", values)

    return read
