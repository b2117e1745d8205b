"""`tether preferences`: what a store holds, and its export to files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import UserError
from tether.preferences.agreement import Agreement, agreement
from tether.preferences.export import export, import_jsonl
from tether.preferences.places import store_in
from tether.preferences.store import Store


@dataclass(frozen=True)
class Options:
    """Show what a store of comparisons holds: counts, annotators, and how far they agree.

    `tether preferences export STORE --to jsonl|pairs|minari --out FILE` writes it to a file, and
    `tether preferences import FILE STORE` reads one that was written as jsonl.
    """

    store: tyro.conf.Positional[str]
    """A store (a file, or a postgresql:// URL), or the folder of a run that has one."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a store of comparisons to a file."""

    store: tyro.conf.Positional[str]
    """A store (a file, or a postgresql:// URL), or the folder of a run that has one."""
    to: Literal["jsonl", "pairs", "minari"]
    """Everything, superseded answers included, to be read back (jsonl); comparisons of texts as
    prompt, chosen, rejected and label, which tether reward and tether dpo read (pairs); or
    comparisons of segments as references into Minari data sets (minari)."""
    out: Path
    """The file to write, one JSON object on each line."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class ImportOptions:
    """Add what was exported as jsonl to a store of comparisons."""

    file: tyro.conf.Positional[Path]
    """A file that tether preferences export --to jsonl wrote."""
    store: tyro.conf.Positional[str]
    """The store: a file, which is made if there is none, or a postgresql:// URL."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def preferences(arguments: Sequence[str]) -> None:
    """`tether preferences STORE`, and its two subcommands."""
    if arguments and arguments[0] == "export":
        _export(arguments[1:])
    elif arguments and arguments[0] == "import":
        _import(arguments[1:])
    else:
        _show(arguments)


def _export(arguments: Sequence[str]) -> None:
    options = parse(ExportOptions, arguments, prog="tether preferences export")
    with _opened(options.store) as store:
        exported = export(store, options.to, options.out)
    for reason, count in exported.left_out.items():
        say(f"left out: {count} ({reason})")
    say(f"written: {exported.path} ({exported.rows} lines)")
    if options.json:
        print_json(
            {
                "path": str(exported.path),
                "rows": exported.rows,
                "left_out": exported.left_out,
            }
        )


def _import(arguments: Sequence[str]) -> None:
    options = parse(ImportOptions, arguments, prog="tether preferences import")
    if not options.file.is_file():
        raise UserError(f"there is no file {options.file}")
    with Store.open(options.store) as store:
        answers = import_jsonl(options.file, store)
        say(f"read: {answers} answers into {store.name}")
    if options.json:
        print_json({"answers": answers})


def _show(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="tether preferences")
    with _opened(options.store) as store:
        counts = store.counts()
        annotators = store.annotators()
        agreed = agreement(answer for _, answer in store.standing())
        notes = store.notes()
    if options.json:
        print_json(
            _without_nan(
                {
                    "counts": asdict(counts),
                    "annotators": [asdict(summary) for summary in annotators],
                    "agreement": asdict(agreed),
                    "notes": notes,
                }
            )
        )
        return
    print(
        f"{counts.queries} queries: {counts.answered} answered, {counts.skipped} skipped, "
        f"{counts.leased} being looked at, {counts.open} open"
    )
    if annotators:
        titles = f"{'answers':>8} {'ties':>6} {'skipped':>8} {'undone':>7} {'seconds':>8}"
        print(f"{'annotator':20} {titles}")
    for one in annotators:
        seconds = "" if one.seconds is None else f"{one.seconds:.1f}"
        print(
            f"{one.annotator:20} {one.answers:8} {one.ties:6} {one.skipped:8} {one.retracted:7} "
            f"{seconds:>8}"
        )
    _print_agreement(agreed)


def _print_agreement(agreed: Agreement) -> None:
    if not agreed.pairs:
        return
    print(
        f"{agreed.judgements} judgements by several annotators: {agreed.same:.0%} the same, "
        f"Krippendorff's alpha {agreed.alpha:.2f}"
    )
    for pair in agreed.pairs:
        names = f"{pair.first} and {pair.second}"
        print(f"  {names}: {pair.same:.0%} of {pair.judgements}, Cohen's kappa {pair.kappa:.2f}")


@contextmanager
def _opened(location: str) -> Iterator[Store]:
    with Store.open(store_in(location), create=False) as store:
        yield store


def _without_nan(value: Any) -> Any:
    """JSON has no NaN, so what cannot be said is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return value
