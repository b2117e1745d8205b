"""The command judge: soft labels for pairs of texts, by a language model, with an audit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import Interrupted, UserError
from tether.language.data.formats import Comparison, Ranked, read_data
from tether.language.data.sources import MOVIE_REVIEWS, Row
from tether.language.judge.audit import audit, lines
from tether.language.judge.judges import Judge
from tether.language.judge.labelling import Labelled, Pair, label
from tether.language.judge.opening import JudgeSettings, open_settings
from tether.language.judge.teacher import answer_of, unanswered
from tether.learning.output.progress import Progress, open_progress
from tether.learning.storage.durable import check_new_file, replaced, write_json
from tether.preferences.places import is_store, store_in
from tether.preferences.store import Store

_REVIEWS = 128


@dataclass(frozen=True)
class Options:
    """What is judged, and where the labels go."""

    data: str = MOVIE_REVIEWS
    """Pairs to label: movie-reviews, a .jsonl or .parquet file or a data set of the Hugging Face
    hub with the columns chosen and rejected, or prompt and completions (two of them); or a store
    of comparisons, to which the labels are added."""
    split: str = "train"
    """The split of a data set of the hub; for movie-reviews, train or held_out."""
    limit: int | None = None
    """Labels at most this many pairs; of movie-reviews 128 if not given."""
    skip_bad: bool = False
    """Leaves out rows that cannot be read or judged, and names them in the audit, instead of
    stopping at the first one."""
    out: Path | None = None
    """A new .jsonl file: the rows with their columns and a label, the probability that chosen, or
    the first of completions, is better; judged.jsonl if not given. The audit lies beside it."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""
    quiet: bool = False
    """Shows no progress."""


def judge(arguments: Sequence[str]) -> None:
    """`tether judge`."""
    command = make_dataclass(
        "Judge",
        [
            ("options", Annotated[Options, tyro.conf.arg(name="pairs")]),
            ("settings", Annotated[JudgeSettings, tyro.conf.arg(name="judge")]),
        ],
        frozen=True,
    )
    default = command(Options(), JudgeSettings.load({}))
    command.__doc__ = (
        "Label pairs of texts by a language model: the probability that the first is better, read "
        "from the probabilities of its answers, with an audit of the judge."
    )
    parsed: Any = parse(command, arguments, prog="tether judge", default=default)
    options, settings = parsed.options, parsed.settings
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit is {options.limit}; expected at least 1 pair")
    work = _judge_store if is_store(options.data) else _judge_rows
    found = work(options, settings)
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    if options.json:
        print_json(found)


def _judge_rows(options: Options, settings: JudgeSettings) -> dict[str, Any]:
    out = options.out or Path("judged.jsonl")
    if out.suffix != ".jsonl":
        raise UserError(f"out is {out}; expected a name that ends in .jsonl")
    beside = out.with_suffix(".audit.json")
    for path in (out, beside):
        check_new_file(path)
    rows, pairs, skipped = _read(options)
    opened = open_settings(settings)
    done = _label(opened, pairs, options)
    found = {**_audited(opened, done, skipped), "out": str(out), "data": options.data}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out.parent}: {error.strerror or error}") from error
    with replaced(out) as file:
        for line in _lines(rows, done.labels):
            file.write(line)
    write_json(beside, found)
    say(f"labels: {out}; audit: {beside}")
    return found


def _judge_store(options: Options, settings: JudgeSettings) -> dict[str, Any]:
    if options.out is not None:
        raise UserError(f"out is {options.out}, and the labels of a store go into it; leave it out")
    with Store.open(store_in(options.data), create=False) as store:
        opened = open_settings(settings)
        waiting = list(unanswered(store, opened))[: options.limit]
        queries = [query for query, _ in waiting]

        def keep(done: int, labels: Sequence[float | None]) -> None:
            start = done - len(labels)
            store.answer_all(
                answer_of(opened, query, one)
                for query, one in zip(queries[start:done], labels, strict=True)
                if one is not None
            )

        done = _label(opened, [pair for _, pair in waiting], options, keep)
        found = {**_audited(opened, done, 0), "data": store.name, "out": store.name}
        store.note(f"audit {opened.name}", found)
        say(f"labels and audit: store {store.name}, annotator {opened.name}")
    return found


def _read(options: Options) -> tuple[list[Row], list[Pair], int]:
    limit = options.limit
    if limit is None and options.data == MOVIE_REVIEWS:
        limit = _REVIEWS
    samples = read_data(
        options.data,
        ("comparison", "ranked"),
        split=options.split,
        limit=limit,
        skip_bad=options.skip_bad,
    )
    rows, pairs = [], []
    for row, sample in samples.with_rows():
        if isinstance(sample, Comparison):
            # Without a label, that one was chosen is what people have said.
            pairs.append(
                Pair(row.place, sample.prompt, sample.chosen, sample.rejected, sample.label)
            )
        elif isinstance(sample, Ranked):
            if len(sample.completions) != 2:
                raise UserError(
                    f"{row.place}, field 'completions': {len(sample.completions)} of them; a judge "
                    "labels pairs: expected two"
                )
            first, second = sample.completions
            pairs.append(Pair(row.place, sample.prompt, first, second, _human(row)))
        rows.append(row)
    if not pairs:
        raise UserError(f"data {options.data} has no pair that can be judged")
    return rows, pairs, samples.skipped


def _human(row: Row) -> float | None:
    given = row.values.get("label")
    return float(given) if isinstance(given, int | float) and 0 <= given <= 1 else None


def _label(judge: Judge, pairs: Sequence[Pair], options: Options, keep: Any = None) -> Labelled:
    progress: Progress = open_progress(
        len(pairs), 0, metric="", show=not options.quiet, unit="pairs"
    )

    def on_chunk(done: int, labels: Sequence[float | None]) -> None:
        if keep is not None:
            keep(done, labels)
        progress.at(done)

    with closing(progress):
        try:
            return label(judge, pairs, skip_failed=options.skip_bad, on_chunk=on_chunk)
        except Interrupted as stopped:
            say(f"tether: {stopped}")
            raise


def _audited(judge: Judge, done: Labelled, skipped: int) -> dict[str, Any]:
    found = audit(judge, done.seen)
    found |= {"skipped": skipped, "judged_now": done.paid, "judged_before": done.known}
    for line in lines(found):
        say(line)
    return found


def _lines(rows: Sequence[Row], labels: Sequence[float | None]) -> Iterator[bytes]:
    for row, probability in zip(rows, labels, strict=True):
        if probability is None:
            continue
        values = dict(row.values)
        if "label" in values:
            values["human_label"] = values.pop("label")
        values["label"] = probability
        yield json.dumps(values, ensure_ascii=False, default=str).encode() + b"\n"
