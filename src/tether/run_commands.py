"""Commands about runs of every engine: resume, plot, report; and the list of all methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tether.arguments import parse, print_json, say
from tether.engines import ENGINES, engine_of_run, methods_of
from tether.errors import UserError


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its newest checkpoint, bit for bit; or every seed of a folder."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a folder of several seeds."""
    env: str | None = None
    """A policy's environment again, if its id is module:Id: only modules that are named here are
    imported."""
    network: str | None = None
    """A policy's own network again, as module:object, where it has one."""
    total_steps: int | None = None
    """A new budget of environment steps, examples, comparisons or episodes; the run's own if not
    given."""
    checkpoint_every: int | None = None
    """A checkpoint is saved whenever training passes a multiple of this many steps, and every
    minute in any case."""
    threads: int | None = None
    """Physics threads of a policy's run; all cores up to 8 if not given."""
    reward: tuple[str, ...] = ()
    """Rewards of a language model's run, needed again if some are Python functions:
    module:function."""
    teacher: str | None = None
    """The teacher of a run of prefer again, if it is module:function."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Where metrics are written besides metrics.jsonl; where the run has written them so far if not
    given."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""
    quiet: bool = False
    """Shows no progress."""


def resume(arguments: Sequence[str]) -> None:
    """`tether resume RUN`."""
    options = parse(ResumeOptions, arguments, prog="tether resume")
    from tether import api
    from tether.learning.seeds import Seeds

    network: Any = None
    if options.network is not None:
        from tether.control.named_objects import named_object

        network = named_object("--network", options.network)
    optional = {
        "env": options.env,
        "network": network,
        "total_steps": options.total_steps,
        "checkpoint_every": options.checkpoint_every,
        "threads": options.threads,
        "reward": options.reward or None,
        "teacher": options.teacher,
        "sinks": options.sinks,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    trained = api.resume(options.run, progress=not options.quiet, **given)
    runs = trained.runs if isinstance(trained, Seeds) else [trained]
    if not engine_of_run(options.run).leads:
        return
    for run in runs:
        say(run.line())
    if options.json:
        print_json(trained.summary())


def prefer(arguments: Sequence[str]) -> None:
    """`tether prefer`: of a policy with --env, of a language model with --model.

    Raises:
        UserError: neither is given, or both are.
    """
    given = {word.partition("=")[0] for word in arguments}
    usage = {
        "--env": "tether prefer --env ID --labels N [--teacher T]",
        "--model": "tether prefer --model M --data D [--teacher T]",
    }
    chosen = [option for option in usage if option in given]
    if not chosen and given & {"-h", "--help"}:
        print("usage: " + "\n       ".join(usage.values()))
        print("each with --help lists its options")
        return
    if len(chosen) != 1:
        raise UserError(
            f"prefer got {' and '.join(chosen) or 'neither --env nor --model'}; expected one of "
            "them: --env ID for a policy, --model M for a language model"
        )
    if chosen == ["--env"]:
        from tether.control.preference_commands import prefer as learn_policy

        learn_policy(arguments)
    else:
        from tether.language.commands.prefer import prefer as learn_model

        learn_model(arguments)


def evaluate(arguments: Sequence[str]) -> None:
    """`tether evaluate RUN`: of a policy in an environment, or of a language model."""
    runs = [word for word in arguments if (Path(word) / "run.json").is_file()]
    if runs and engine_of_run(runs[0]).name == "language":
        from tether.language.commands import evaluate as language

        language.evaluate(arguments)
    else:
        from tether.control import commands as control

        if not runs and {"-h", "--help"} & set(arguments):
            print(
                "These are the options for a policy in an environment. A language model has "
                "others: tether evaluate RUN --help, with its run, lists them.\n"
            )
        control.evaluate(arguments)


@dataclass(frozen=True)
class MethodsOptions:
    """List the methods of every engine."""

    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def methods(arguments: Sequence[str]) -> None:
    """`tether methods`."""
    options = parse(MethodsOptions, arguments, prog="tether methods")
    found = {name: methods_of(name) for name in ENGINES}
    if options.json:
        print_json({n: m.summary for known in found.values() for n, m in known.items()})
        return
    usage = {"control": "tether train METHOD --env ID", "language": "tether METHOD --model M"}
    for engine, known in found.items():
        print(f"{engine} ({usage[engine]}):")
        for name, method in known.items():
            print(f"  {name:14}{method.summary}")


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of several seeds."""
    out: Path = Path("curves.png")
    """The picture: a .png, .svg or .pdf file."""
    metric: str | None = None
    """The measurement to draw, named as in metrics.jsonl."""
    by: Literal["env", "method", "folder"] | None = None
    """Draws one line with a band for all runs of an environment, of a method, or in one folder.
    Folders of several seeds are drawn by folder if this is not given."""
    band: Literal["range", "deviation", "interval"] = "range"
    """What the band shows: the range, the standard deviation, or the 95 % interval of the mean."""
    smooth: int = 1
    """Averages over this many neighbouring points."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about one run or several: settings, curves and samples, in a single file."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of several seeds."""
    out: Path | None = None
    """The page; report.html in the run's folder or, for several runs, in the current folder."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def report(arguments: Sequence[str]) -> None:
    """`tether report RUN...`."""
    options = parse(ReportOptions, arguments, prog="tether report")
    if not options.runs:
        raise UserError("no runs given; usage: tether report RUN... --out report.html")
    from tether.learning.reports.report import write_report
    from tether.learning.seeds import runs_in

    path = write_report(runs_in(options.runs), options.out)
    say(f"written: {path}")
    if options.json:
        print_json({"report": str(path), "runs": [str(run) for run in options.runs]})


def plot(arguments: Sequence[str]) -> None:
    """`tether plot RUN...`."""
    options = parse(PlotOptions, arguments, prog="tether plot")
    if not options.runs:
        raise UserError("no runs given; usage: tether plot RUN... --out curves.png")
    from tether.learning.reports.plots import learning_curves
    from tether.learning.seeds import is_seeds_folder, runs_in

    grouped = "folder" if any(is_seeds_folder(run) for run in options.runs) else None
    path = learning_curves(
        runs_in(options.runs),
        options.out,
        metric=options.metric,
        by=options.by or grouped,
        band=options.band,
        smooth=options.smooth,
    )
    say(f"drawn: {path}")
    if options.json:
        print_json({"plot": str(path), "runs": [str(run) for run in options.runs]})
