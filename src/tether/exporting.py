"""`tether export`: a run's model in a form that other programs read.

The run's record says which engine it is of, and that engine writes the files.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import RunError, UserError
from tether.learning.export_options import ExportOptions
from tether.learning.run import Run
from tether.learning.storage.new_folder import check_new, new_folder

Format = Literal["hf", "onnx", "gguf"]

_FORMATS: Final[dict[str, dict[str, str]]] = {
    "control": {
        "hf": "tether.control.export.hub:write",
        "onnx": "tether.control.export.onnx:write",
    },
    "language": {
        "hf": "tether.language.export.hf:write",
        "gguf": "tether.language.export.gguf:write",
    },
}
_HOLDS: Final = {"control": "a policy for an environment", "language": "a language model"}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        run: the run's folder.
        to: the format.
        folder: where it was written.
        files: names of the files in it, sorted.
        facts: what the format's writer has to say: how far a check differed, or an evaluation.
    """

    run: Path
    to: str
    folder: Path
    files: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        place = {"run": str(self.run), "to": self.to, "out": str(self.folder), "files": self.files}
        return {**place, **self.facts}


def export(
    run: str | Path, *, to: Format, out: str | Path, env: Any = None, **options: Any
) -> Exported:
    """Writes a run's model for other programs: ``tether.export(run, to="hf", out="model")``.

    Args:
        run: the run's folder; its newest checkpoint is exported.
        to: ``"hf"``, a folder that `transformers` reads (for a policy: the layout of the Hugging
            Face hub, which :func:`tether.load` reads); ``"onnx"``, a policy with its normalization
            and action mapping; ``"gguf"``, a language model for llama.cpp.
        out: a new or empty folder. It is written as a whole or not at all.
        env: the environment in which a policy is evaluated for its card, needed only if the run
            was started from a function: a Gymnasium id, an environment, or a function.
        **options: fields of :class:`tether.learning.export_options.ExportOptions`.

    Returns:
        The names of the files, and what the writer found.

    Raises:
        UserError: not a run, nothing is saved in it yet, a format that does not suit it, an option
            that does not suit the format, or a folder that is not empty or cannot be written.
    """
    settings = ExportOptions.load(options)
    folder = Path(out)
    opened = Run.open(run)
    engine = _engine(opened)
    writer = _writer(opened, engine, to)
    settings.check(engine, to)
    if folder.suffix in (".onnx", ".gguf"):
        raise UserError(
            f"--out {folder} looks like a file; give a folder, such as {folder.with_suffix('')}"
        )
    check_new(folder)
    if not opened.checkpoints():
        raise RunError(f"run {run} has no checkpoint yet, so there is nothing to export")
    module, function = writer.split(":")
    write = getattr(importlib.import_module(module), function)
    with new_folder(folder) as unfinished:
        facts = write(opened, unfinished, settings, env)
        files = sorted(path.name for path in unfinished.iterdir())
    return Exported(opened.path, to, folder, files, facts)


@dataclass(frozen=True)
class Options:
    """Write the model of a run's newest checkpoint for other programs."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    to: Format
    """hf: a folder for transformers, vLLM and the Hugging Face hub; onnx: a control policy with its
    normalization inside; gguf: a language model for llama.cpp and Ollama."""
    out: Path
    """Folder to write, new or empty."""
    settings: ExportOptions = field(default_factory=lambda: ExportOptions.load({}))
    """How to write it."""
    env: str | None = None
    """Environment in which a policy is evaluated for its card; the run's own if not given."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def command(arguments: Sequence[str]) -> None:
    """`tether export RUN --to hf|onnx|gguf --out DIR`."""
    options = parse(Options, arguments, prog="tether export")
    exported = export(
        options.run, to=options.to, out=options.out, env=options.env, **options.settings.dump()
    )
    say(f"written: {exported.folder} ({', '.join(exported.files)})")
    if options.json:
        print_json(exported.summary())


def _engine(run: Run) -> str:
    if run.engine in _FORMATS:
        return run.engine
    raise UserError(
        f"run {run.path} was trained by {run.method}, which tether export cannot write; expected a "
        "run of tether train, sft, reward, rlhf or dpo"
    )


def _writer(run: Run, engine: str, to: str) -> str:
    known = _FORMATS[engine]
    if to not in known:
        choices = " or ".join(known)
        raise UserError(
            f"to is {to!r}, but run {run.path} holds {_HOLDS[engine]}; expected {choices}"
        )
    return known[to]
