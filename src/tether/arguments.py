"""Command-line arguments from typed settings, by tyro, with mistakes told in one line."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from tether.errors import UserError

T = TypeVar("T")


def parse(kind: Callable[..., T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Fill `kind` (a dataclass, possibly holding others) from `arguments`.

    Prints help and exits with 0 on --help.

    Raises:
        UserError: an unknown option, a missing or a bad value.
    """
    # "none" as the documentation writes it; tyro knows only Python's spelling.
    spelled = ["None" if word == "none" else word for word in arguments]
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=spelled,
                prog=prog,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_line(said.getvalue())}; see {prog} --help") from None


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on one line of stdout, the last."""
    print(json.dumps(result, allow_nan=False), flush=True)


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout stays machine-readable."""
    print(text, file=sys.stderr, flush=True)


def _one_line(box: str) -> str:
    """The message inside tyro's box, without its frame, context and advice."""
    text = re.sub(r"[╭╮╰╯│┌┐└┘]", " ", box)
    sections = re.split(r"^[\s]*[─\-]{4,}[\s]*$", text, flags=re.MULTILINE)
    words = [" ".join(section.split()) for section in sections]
    words = [word for word in words if word]
    # The frame's title stands in the rule itself or alone before the first rule.
    message = words[1] if len(words) > 1 and len(words[0].split()) <= 3 else (words or ["bad arguments"])[0]
    message = re.sub(r"\s*Got errors:.*", "", message)
    message = re.sub(r"^Error parsing (settings|options): ", "", message)
    suggestion = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(words))
    if suggestion:
        message += f"; did you mean {suggestion.group(1)}?"
    return message.rstrip(".")
