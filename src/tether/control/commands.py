"""The commands of the control engine: train, evaluate, envs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from tether.arguments import json_object, options_from, parse, peek, print_json, read_toml, say
from tether.control import training
from tether.control.evaluation import EVALUATION_SEED
from tether.control.methods import METHODS
from tether.control.named_objects import named_object
from tether.errors import UserError
from tether.learning.alarms import parse_alarm
from tether.learning.methods import find_method
from tether.learning.seeds import Seeds, is_seeds_folder, parse_seeds, runs_in, train_seeds


@dataclass(frozen=True)
class TrainOptions:
    """Options of the run."""

    env: str
    """The Gymnasium id of the environment, such as HalfCheetah-v5; module:Id imports the module
    first."""
    preset: str = "default"
    """The settings to start from: default (what scores best) or, where the method has it, paper
    (those of its publication)."""
    total_steps: int = 1_000_000
    """Environment steps to train for; for bc, pairs to learn from."""
    seed: int | None = None
    """Decides everything random: the same seed gives the same numbers; 0 if not given."""
    seeds: str | None = None
    """Several seeds, such as 0,1,2 or 0-9; each gets a run folder of its own inside --out."""
    out: Path | None = None
    """The run's folder, which must be new or empty; runs/METHOD-ENV-SEED-TIME if not given."""
    init_from: Path | None = None
    """Another run whose policy training begins with; its spaces and network must be equal."""
    network: str | None = None
    """Your own network for policy and critic, as module:object, in place of the built-in one."""
    config: Path | None = None
    """A TOML file with settings; options on the command line override it."""
    env_kwargs: str = "{}"
    """Arguments of the environment as a JSON object, such as '{"ctrl_cost_weight": 0.05}'."""
    threads: int | None = None
    """Physics threads; all cores up to 8 if not given. Results do not depend on it."""
    checkpoint_every: int | None = None
    """A checkpoint is saved whenever training passes a multiple of this many steps, and every
    minute in any case."""
    alarms: tuple[str, ...] = ()
    """Signs of reward hacking to watch for, each reported once on stderr and written as a metric:
    METRIC>NUMBER, METRIC<NUMBER, drift:METRIC or proxy-without-truth."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics are written besides metrics.jsonl."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""
    quiet: bool = False
    """Shows no progress."""


def train(arguments: Sequence[str]) -> None:
    """`tether train METHOD --env ID ...`."""
    if not arguments or arguments[0].startswith("-"):
        lines = ["usage: tether train METHOD --env ID [options]; METHOD is one of:"]
        lines += [f"  {name:14}{known.summary}" for name, known in METHODS.items()]
        lines.append("tether train METHOD --help lists the options")
        if arguments and arguments[0] in ("-h", "--help"):
            print("\n".join(lines))
            return
        say("\n".join(lines))
        raise UserError("no METHOD given")
    method, rest = arguments[0], arguments[1:]
    if method == "prefer":
        raise UserError("prefer is a separate command; give: tether prefer --env ID --labels N")
    learner = find_method(METHODS, method)
    preset, file = peek(rest, "--preset") or "default", peek(rest, "--config")
    settings: dict[str, Any] = {}
    if file is not None:
        settings = read_toml(Path(file))
    missing: Any = tyro.MISSING
    given = options_from(TrainOptions, {"env": missing}, settings, source=file)
    base = training.configure(method, preset, settings)
    options, config = _parse_train(method, learner.config_class, given, base, rest)
    kwargs = json_object("--env-kwargs", options.env_kwargs)
    chosen: dict[str, Any] = {
        "env": options.env,
        "preset": options.preset,
        "config": config,
        "total_steps": options.total_steps,
        "out": options.out,
        "init_from": options.init_from,
        "network": named_object("--network", options.network),
        "env_kwargs": kwargs,
        "threads": options.threads,
        "checkpoint_every": options.checkpoint_every,
        "callbacks": [parse_alarm(text) for text in options.alarms],
        "sinks": options.sinks,
        "progress": not options.quiet,
    }
    if options.seeds is not None:
        if options.seed is not None:
            raise UserError("--seed and --seeds are both given; give one of them")
        report_seeds(
            train_seeds(training.ENGINE, method, parse_seeds(options.seeds), **chosen),
            options.json,
        )
        return
    trained = training.train(method, seed=options.seed or 0, **chosen)
    say(trained.line())
    if options.json:
        print_json(trained.summary())


def report_seeds(results: Seeds[Any], as_json: bool) -> None:
    """Says what became of each seed."""
    for trained in results.runs:
        say(trained.line())
    say(f"all seeds: {results.folder}")
    if as_json:
        print_json(results.summary())


@dataclass(frozen=True)
class EvaluateOptions:
    """Play whole episodes with a run's policy, in the environment it was trained in."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a folder of several seeds."""
    env: str | None = None
    """The environment to evaluate in; the run's own if not given. One whose id is module:Id must be
    given: only modules that are named here are imported."""
    network: str | None = None
    """The run's own network again, as module:object, where it has one."""
    episodes: int = 20
    """The number of episodes."""
    seed: int = EVALUATION_SEED
    """The seed of the evaluation: environment i starts from seed + i."""
    sampled: bool = False
    """Samples actions instead of taking the most probable ones."""
    video: Path | None = None
    """Also films one episode into this MP4 file."""
    record: Path | None = None
    """Also keeps the episodes in this folder, which must be new or empty, as demonstrations
    for bc."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def evaluate(arguments: Sequence[str]) -> None:
    """`tether evaluate RUN`."""
    options = parse(EvaluateOptions, arguments, prog="tether evaluate")
    network = named_object("--network", options.network)
    runs = runs_in([options.run])
    if is_seeds_folder(options.run):
        for option, value in (("--video", options.video), ("--record", options.record)):
            if value is not None:
                raise UserError(
                    f"{option} is {value}, and {options.run} holds {len(runs)} seeds; give one of "
                    f"their runs, such as {runs[0]}"
                )
    if options.video is not None:
        from tether.control.video import film

        # First, so that a film that fails leaves no recording in the way of the next attempt.
        film(options.run, options.video, seed=options.seed, env=options.env, network=network)
    results = [_evaluate_one(run, options, network) for run in runs]
    if not is_seeds_folder(options.run):
        if options.json:
            print_json(results[0])
        return
    means = np.array([result["return_mean"] for result in results])
    say(f"return {means.mean():.1f} +- {means.std():.1f} over {len(runs)} seeds")
    if options.json:
        print_json(
            {
                "run": str(options.run),
                "runs": results,
                "return_mean": float(means.mean()),
                "return_std": float(means.std()),
            }
        )


def _evaluate_one(run: Path, options: EvaluateOptions, network: Any) -> dict[str, Any]:
    evaluation = training.evaluate_run(
        run,
        episodes=options.episodes,
        seed=options.seed,
        deterministic=not options.sampled,
        env=options.env,
        network=network,
        record=options.record,
    )
    result: dict[str, Any] = {"run": str(run), **evaluation.summary()}
    if options.record is not None:
        result["demonstrations"] = str(options.record)
    if options.video is not None:
        result["video"] = str(options.video)
    told = "true_return_mean" in result
    say(
        (f"{run.name}: " if run != options.run else "")
        + f"return {result['return_mean']:.1f} +- {result['return_std']:.1f} over "
        f"{result['episodes']} episodes"
        + (f", true return {result['true_return_mean']:.1f}" if told else "")
        + (f"; film: {options.video}" if options.video is not None else "")
        + (f"; demonstrations: {options.record}" if options.record is not None else "")
    )
    return result


@dataclass(frozen=True)
class ListOptions:
    """List the environments."""

    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def envs(arguments: Sequence[str]) -> None:
    """`tether envs`."""
    from tether.control.envs import list_environments

    options = parse(ListOptions, arguments, prog="tether envs")
    known = list_environments()
    if options.json:
        print_json({entry.id: {"backend": entry.backend, "note": entry.note} for entry in known})
        return
    for entry in known:
        print(f"{entry.id:32}{entry.backend:12}{entry.note}")


def _parse_train(
    method: str, config_class: Any, options: TrainOptions, base: Any, arguments: Sequence[str]
) -> Any:
    command = make_dataclass(
        "Train",
        [
            ("options", Annotated[TrainOptions, tyro.conf.arg(name="run")]),
            ("settings", Annotated[config_class, tyro.conf.arg(name=method)]),
        ],
        frozen=True,
    )
    parsed: Any = parse(
        command,
        arguments,
        prog=f"tether train {method}",
        default=command(options, base),
    )
    return parsed.options, parsed.settings
