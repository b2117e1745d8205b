"""The commands that train language models: sft, reward, rlhf, dpo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tether.arguments import options_from, parse, peek, print_json, read_toml, say
from tether.language.methods import METHODS
from tether.language.models.from_run import Setup
from tether.language.runs import training
from tether.language.runtime.processes import processes
from tether.learning.alarms import parse_alarm


@dataclass(frozen=True)
class LearnOptions:
    """Options of the run."""

    epochs: float = 1.0
    """The number of passes over the data."""
    total_steps: int | None = None
    """The number of examples, comparisons or episodes to train on, instead of a number of
    passes."""
    out: Path | None = None
    """The run's folder, which must be new or empty; runs/METHOD-MODEL-SEED-TIME if not given."""
    config: Path | None = None
    """A TOML file with any of the settings below; options on the command line override it."""
    checkpoint_every: int | None = None
    """A checkpoint is saved whenever training passes a multiple of this many steps, and every
    minute in any case."""
    alarms: tuple[str, ...] = ()
    """Signs of over-optimization to watch for, each reported once on stderr and written as a
    metric: METRIC>NUMBER, METRIC<NUMBER, drift:METRIC or proxy-without-truth."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics are written besides metrics.jsonl."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""
    quiet: bool = False
    """Shows no progress."""


def sft(arguments: Sequence[str]) -> None:
    """`tether sft`."""
    _learn("sft", arguments)


def reward(arguments: Sequence[str]) -> None:
    """`tether reward`."""
    _learn("reward", arguments)


def rlhf(arguments: Sequence[str]) -> None:
    """`tether rlhf`."""
    _learn("rlhf", arguments)


def dpo(arguments: Sequence[str]) -> None:
    """`tether dpo`."""
    _learn("dpo", arguments)


def _learn(method: str, arguments: Sequence[str]) -> None:
    options, setup, config = _parse(method, arguments)
    chosen: dict[str, Any] = {
        **setup.model_dump(),
        "config": config,
        "epochs": options.epochs,
        "total_steps": options.total_steps,
        "out": options.out,
        "checkpoint_every": options.checkpoint_every,
        "callbacks": [parse_alarm(text) for text in options.alarms],
        "sinks": options.sinks,
        "progress": not options.quiet,
    }
    trained = training.train(method, **chosen)
    if not processes().leads:
        return
    say(trained.line())
    if options.json:
        print_json(trained.summary())


def _parse(method: str, arguments: Sequence[str]) -> tuple[LearnOptions, Setup, Any]:
    file = peek(arguments, "--config")
    values = {} if file is None else read_toml(Path(file))
    shared = {name: values.pop(name) for name in [*values] if name in Setup.model_fields}
    config_class = METHODS[method].load().config_class
    command = make_dataclass(
        "Learn",
        [
            ("options", Annotated[LearnOptions, tyro.conf.arg(name="run")]),
            ("setup", Annotated[Setup, tyro.conf.arg(name="model and data")]),
            ("settings", Annotated[config_class, tyro.conf.arg(name=method)]),
        ],
        frozen=True,
    )
    default = command(
        options_from(LearnOptions, {}, values, source=file),
        Setup.load(shared, source=file),
        config_class.load(values, source=file),
    )
    command.__doc__ = f"{METHODS[method].summary}."
    parsed: Any = parse(command, arguments, prog=f"tether {method}", default=default)
    return parsed.options, parsed.setup, parsed.settings
