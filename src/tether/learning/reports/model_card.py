"""The parts of a model card that runs of every method share.

A card is a README.md that the Hugging Face hub shows: metadata in YAML between two lines of three
dashes, then Markdown. https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run

CARD: Final = "README.md"

_MARKDOWN: Final = str.maketrans({"|": "\\|", "\n": " ", "`": "'"})


def write_card(folder: Path, metadata: Mapping[str, Any], sections: Sequence[str]) -> None:
    """Writes ``README.md``.

    Args:
        folder: where to.
        metadata: JSON-like values; those that are None are left out.
        sections: pieces of Markdown, with an empty line between each two.
    """
    header = to_yaml({name: value for name, value in metadata.items() if value is not None})
    body = "\n\n".join(section.strip("\n") for section in sections if section)
    (folder / CARD).write_text(f"---\n{header}---\n\n{body}\n", encoding="utf-8")


def settings_table(settings: Mapping[str, Any]) -> str:
    """Settings as a table; whatever names a file of this machine keeps only its last part."""
    rows = [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def metrics_table(run: Run) -> str:
    """The run's last measurements as a table, without those of the clock; empty if none."""
    last = last_metrics(run)
    if not last:
        return ""
    step = int(last.pop("step"))
    rows = [f"| {name} | {value:.6g} |" for name, value in last.items()]
    return "\n".join([f"Measured at step {step:,}.", "", "| metric | value |", "|---|---|", *rows])


def last_metrics(run: Run) -> dict[str, float]:
    """What was measured last before the newest checkpoint, ``step`` included; empty if nothing."""
    if not run.metrics_path.exists():
        return {}
    # A run that was killed may have measured what its checkpoint has not yet learned.
    steps = steps_of(run)
    for row in reversed(read_metrics(run.metrics_path)):
        if row["step"] <= steps:
            return {
                name: value
                for name, value in row.items()
                if not name.startswith("time/") and math.isfinite(value)
            }
    return {}


def steps_of(run: Run) -> int:
    """Steps at which the newest checkpoint was saved; 0 if there is none."""
    newest = next(iter(run.checkpoints()), None)
    return 0 if newest is None else int(newest.stem.removeprefix("step_"))


def portable(value: Any) -> Any:
    """A setting as a card may show it: of an absolute path only the last part."""
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    if isinstance(value, Mapping):
        return {name: portable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    return value


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping of JSON-like values in YAML's block style, with every text in quotes."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for name, part in value.items() for line in _entry(f"{name}:", part)]
    if isinstance(value, list | tuple) and value:
        # "- " stands where the first line of an item would be indented.
        items = ([f"  {line}" for line in _lines(part)] for part in value)
        return [line for first, *rest in items for line in (f"- {first[2:]}", *rest)]
    plain = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and "e" in plain and "." not in plain:
        # Without a point many readers of YAML take a number for a text.
        plain = plain.replace("e", ".0e")
    # JSON's texts are YAML's but for what is not printable, of which YAML wants more escaped.
    return ["".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain)]


def _entry(name: str, value: Any) -> list[str]:
    lines = _lines(value)
    if not (isinstance(value, Mapping | list | tuple) and value):
        return [f"{name} {lines[0]}"]
    indent = "  " if isinstance(value, Mapping) else ""
    return [name, *(indent + line for line in lines)]


def _cell(value: Any) -> str:
    value = portable(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.translate(_MARKDOWN)
