"""Command-line arguments from typed settings, by tyro, with one line for each mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from tether.errors import UserError
from tether.learning.foreign_names import in_tethers_words

T = TypeVar("T")


def parse(
    kind: Callable[..., T], arguments: Sequence[str], *, prog: str, default: T | None = None
) -> T:
    """Fill `kind` (a dataclass, possibly holding others) from `arguments`.

    Prints help and exits with 0 on --help.

    Raises:
        UserError: an unknown option, a missing or a bad value.
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: T = tyro.cli(
                kind,
                args=list(arguments),
                prog=prog,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
                registry=_spellings(),
                **given,
            )
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _one_line(said.getvalue(), option_names(kind))
        raise UserError(f"{message}; see {prog} --help") from None


def option_names(kind: Any) -> set[str]:
    """Names of the fields of a dataclass or of settings, and of those it holds."""
    names: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) or hasattr(hint, "model_fields"):
            names |= option_names(hint)
        elif get_origin(hint) is not ClassVar:
            names.add(name)
    return names


def _spellings() -> ConstructorRegistry:
    """How words become values where the documentation and tyro differ."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def nothing(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        """Reads "none", as the documentation writes it, beside Python's spelling."""
        if kind.type is not type(None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="none",
            choices=("none", "None"),
            instance_from_str=lambda _: None,
            is_instance=lambda value: value is None,
            str_from_instance=lambda _: ["none"],
        )

    @registry.primitive_rule
    def whole(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        """Reads 1e6 and 1_000_000 as whole numbers too."""
        if kind.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: _whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def text(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        """Reads a text that may be missing as it is, "none" included."""
        if set(get_args(kind.type)) != {str, type(None)}:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: value is None or isinstance(value, str),
            str_from_instance=lambda value: ["none" if value is None else value],
        )

    return registry


def _whole_number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a whole number") from None
    if not number.is_integer():
        raise ValueError(f"{word!r} is not a whole number")
    return int(number)


def peek(arguments: Sequence[str], option: str) -> str | None:
    """The value of one option, such as ``"--config"``, before the rest can be parsed."""
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(option + "="):
            return word.removeprefix(option + "=")
    return None


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a file given as --config.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid TOML: {error}") from error


def options_from(
    kind: type[T], required: Mapping[str, Any], values: dict[str, Any], *, source: str | None
) -> T:
    """Options of a command (a dataclass) from a file's values, which lose what they give.

    Args:
        kind: the dataclass.
        required: values of fields without a default.
        values: what the file says; fields of `kind` are taken out.
        source: the file, named in errors.

    Raises:
        UserError: a value is of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    own = {name: values.pop(name) for name in [*values] if name in known}
    hints = get_type_hints(kind)
    for name, value in own.items():
        try:
            own[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input should be ", "expected ")
            raise UserError(f"{source}: {name} is {value!r}; {reason}") from None
    return kind(**{**required, **own})


def json_object(option: str, text: str) -> dict[str, Any]:
    """What an option such as ``--env-kwargs '{"a": 1}'`` holds.

    Raises:
        UserError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{option} is {text!r}, which is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{option} is {text!r}; expected a JSON object such as '{{}}'")
    return value


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on one line of stdout, the last."""
    print(json.dumps(result, allow_nan=False), flush=True)


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout stays machine-readable."""
    print(text, file=sys.stderr, flush=True)


def _one_line(box: str, known: Collection[str]) -> str:
    """The message inside tyro's box, without its frame, context and advice.

    An option that is another library's word is answered with the one of `known` that it means.
    """
    lines = [re.sub(r"[╭╮╰╯│]", " ", line).strip() for line in box.splitlines()]
    # A rule of dashes, bare or around the box's title, ends each section.
    sections: list[list[str]] = [[]]
    for line in lines:
        if re.search(r"[─-]{4,}", line):
            sections.append([])
        elif line:
            sections[-1].append(line)
    texts = [" ".join(section) for section in sections if section]
    message = next((t for t in texts if len(t.split()) > 2), "bad arguments")
    message = re.sub(r"\s*Got errors:.*", "", message)
    message = re.sub(
        r"^Missing from (tether [\w-]+): PATH .*", r"usage: \1 RUN; RUN is missing", message
    )
    message = re.sub(
        r"^Missing from (tether [\w-]+): STR .*", r"usage: \1 MODEL; MODEL is missing", message
    )
    message = re.sub(r"^Error parsing (settings|options): ", "", message)
    message = re.sub(r"^Error parsing (--[\w-]+): (.*)", _bad_value, message)
    message = re.sub(r"^Unrecognized options: (--[\w-]+).*", r"unknown option \1", message)
    message = re.sub(r"^Missing from .*?: (--[\w-]+).*", r"\1 is required", message)
    unknown = re.match(r"unknown option (--[\w-]+)", message)
    ours = in_tethers_words(unknown.group(1), known, option=True) if unknown else None
    if unknown and ours is not None:
        return f"unknown option {unknown.group(1)}; {ours}"
    suggestion = re.search(r"Perhaps you meant:\W+(--[\w-]+)", " ".join(texts))
    if suggestion:
        message += f"; did you mean {suggestion.group(1)}?"
    return message.rstrip(".")


_KINDS = {"INT": "a whole number", "FLOAT": "a number", "none": "none", "PATH": "a path"}


def _bad_value(found: re.Match[str]) -> str:
    """Tyro's words for a value that cannot be read, in tether's."""
    option, reason = found[1], found[2]
    value = re.search(r"\['(.*?)'(?:, .*)?\]", reason)
    if value is None:
        return f"{option}: {reason}"
    several = re.match(r"Could not find valid parse", reason)
    if several and "," in value[1]:
        spaced = " ".join(value[1].replace(",", " ").split())
        return f"{option} is {value[1]!r}; separate values by spaces: {option} {spaced}"
    kinds = re.search(r"no type matching (\S+)", reason)
    if kinds is None:
        return f"{option} is {value[1]!r}, which cannot be read"
    words = [_KINDS.get(kind, kind) for kind in kinds[1].split("|")]
    # "none" is the last resort of those who read it.
    ordered = sorted(words, key=lambda word: word == "none")
    return f"{option} is {value[1]!r}; expected {' or '.join(ordered)}"
