"""The language half's commands: sft, reward, rlhf, dpo, resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tether.arguments import parse, peek, print_json, read_toml, say
from tether.language.methods import METHODS, find_method
from tether.language.models.from_run import Setup
from tether.language.runs import training
from tether.language.runtime.processes import processes


@dataclass(frozen=True)
class LearnOptions:
    """How to run it."""

    epochs: float = 1.0
    """Passes over the data."""
    total_steps: int | None = None
    """Examples, comparisons or episodes to take, instead of passes."""
    out: Path | None = None
    """Folder of the run (new or empty); runs/METHOD-MODEL-SEED-TIME if not given."""
    config: Path | None = None
    """TOML file with any of the settings below; options on the command line win."""
    checkpoint_every: int | None = None
    """Save whenever so many steps are passed; every minute in any case."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    quiet: bool = False
    """Show no progress."""


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


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run where its newest checkpoint left off."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    total_steps: int | None = None
    """A new budget of examples, comparisons or episodes; the run's own if not given."""
    checkpoint_every: int | None = None
    """Save whenever so many steps are passed; every minute in any case."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    quiet: bool = False
    """Show no progress."""


def resume(arguments: Sequence[str]) -> None:
    """`tether resume RUN`, for a run of this half."""
    options = parse(ResumeOptions, arguments, prog="tether resume")
    trained = training.resume(
        options.run,
        total_steps=options.total_steps,
        checkpoint_every=options.checkpoint_every,
        progress=not options.quiet,
    )
    _report(trained, options.json)


def _learn(method: str, arguments: Sequence[str]) -> None:
    options, setup, config = _parse(method, arguments)
    trained = training.train(
        method,
        epochs=options.epochs,
        total_steps=options.total_steps,
        out=options.out,
        checkpoint_every=options.checkpoint_every,
        sinks=options.sinks,
        progress=not options.quiet,
        **setup.model_dump(),
        **config.model_dump(),
    )
    _report(trained, options.json)


def _parse(method: str, arguments: Sequence[str]) -> tuple[LearnOptions, Setup, Any]:
    file = peek(arguments, "--config")
    values = {} if file is None else read_toml(Path(file))
    shared = {name: values.pop(name) for name in [*values] if name in Setup.model_fields}
    config_class = find_method(method).config_class
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
        LearnOptions(),
        Setup.load(shared, source=file),
        config_class.load(values, source=file),
    )
    command.__doc__ = f"{METHODS[method].summary}."
    parsed: Any = parse(command, arguments, prog=f"tether {method}", default=default)
    return parsed.options, parsed.setup, parsed.settings


def _report(trained: training.Trained, as_json: bool) -> None:
    if not processes().leads:
        return
    summary = trained.summary()
    shown = [METHODS[trained.method].progress_metric, "held_out/loss"]
    told = [f"{name} {trained.metrics[name]:.4g}" for name in shown if name in trained.metrics]
    say(
        f"{summary['steps']:,} steps in {summary['seconds']:.1f} s; "
        f"{'; '.join([*told, f'run: {trained.run}'])}"
    )
    if as_json:
        print_json(summary)
