"""The part of a report that shows what evaluations found of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_HEADS: Final = ("attribute", "value", "95 % interval", "the other", "what it can't tell")


def caption(evaluation: Mapping[str, Any]) -> str:
    """What was evaluated, and with what, in a line of text."""
    found, settings = evaluation.get("found", {}), evaluation.get("settings", {})
    parts = [f"at step {int(evaluation.get('step', 0)):,}"]
    if "prompts" in found:
        parts.append(f"{int(found['prompts']):,} prompts")
    parts += [f"{name} {_said(value)}" for name, value in settings.items() if _given(value)]
    return ", ".join(parts)


def table(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of texts; a column in which every row is empty is left out."""
    rows = [_row(attribute) for attribute in evaluation["attributes"]]
    there = [
        place
        for place in range(len(_HEADS))
        if place in (0, 1, len(_HEADS) - 1) or any(row[place] for row in rows)
    ]
    return [_HEADS[p] for p in there], [[row[p] for p in there] for row in rows]


def _row(attribute: Mapping[str, Any]) -> Sequence[str]:
    interval, other = attribute.get("interval"), attribute.get("other")
    return (
        str(attribute.get("title", "")),
        _number(attribute.get("value")),
        "" if interval is None else " to ".join(map(_number, interval)),
        "" if other is None else _number(other),
        str(attribute.get("cannot_tell", "")),
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _given(value: Any) -> bool:
    return value is not None and value not in ("", [], ())


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
