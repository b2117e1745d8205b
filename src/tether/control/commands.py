"""The control half's commands: train, resume, evaluate, methods, envs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tether.arguments import parse, peek, print_json, read_toml, say
from tether.control import training
from tether.control.evaluation import EVALUATION_SEED
from tether.control.methods import METHODS, find_method
from tether.control.named_objects import named_object
from tether.errors import UserError


@dataclass(frozen=True)
class TrainOptions:
    """What to train on, and how to run it."""

    env: str
    """Gymnasium environment id, such as HalfCheetah-v5 or module:Id."""
    preset: str = "default"
    """default (what scores best) or, where the method has it, paper (its publication)."""
    total_steps: int = 1_000_000
    """Environment steps to take; for bc, pairs to learn from."""
    seed: int = 0
    """Decides everything random: same seed, same numbers."""
    seeds: str | None = None
    """Several seeds in one process, such as 0,1,2; each gets its own run folder."""
    out: Path | None = None
    """Folder of the run (new or empty); runs/METHOD-ENV-SEED-TIME if not given."""
    init_from: Path | None = None
    """Another run, of equal spaces and network, whose policy to begin with."""
    network: str | None = None
    """Your own network for policy and critic, as module:object, in place of the built-in one."""
    config: Path | None = None
    """TOML file with settings; options on the command line win."""
    env_kwargs: str = "{}"
    """Environment arguments as a JSON object, such as '{"ctrl_cost_weight": 0.05}'."""
    threads: int | None = None
    """Physics threads; all cores up to 8 if not given. Results do not depend on it."""
    checkpoint_every: int | None = None
    """Save whenever training passes a multiple of so many steps, beside once a minute."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    quiet: bool = False
    """Show no progress."""


def train(arguments: Sequence[str]) -> None:
    """`tether train METHOD --env ID ...`."""
    if not arguments or arguments[0].startswith("-"):
        say("usage: tether train METHOD --env ID [options]; METHOD is one of:")
        for name, known in METHODS.items():
            say(f"  {name:14}{known.summary}")
        say("tether train METHOD --help lists the options")
        if arguments and arguments[0] in ("-h", "--help"):
            return
        raise UserError("no METHOD given")
    method, rest = arguments[0], arguments[1:]
    learner = find_method(method)
    preset, file = peek(rest, "--preset") or "default", peek(rest, "--config")
    settings: dict[str, Any] = {}
    if file is not None:
        settings = read_toml(Path(file))
    base = training.configure(method, preset, settings)
    options, config = _parse_train(method, learner.config_class, base, rest)
    kwargs = _json_object(options.env_kwargs)
    if options.seeds is not None:
        _train_seeds(method, options, config, kwargs)
        return
    trained = training.train(
        method,
        options.env,
        preset=options.preset,
        total_steps=options.total_steps,
        seed=options.seed,
        out=options.out,
        init_from=options.init_from,
        network=named_object("--network", options.network),
        env_kwargs=kwargs,
        threads=options.threads,
        checkpoint_every=options.checkpoint_every,
        sinks=options.sinks,
        progress=not options.quiet,
        **config.model_dump(),
    )
    _report(trained, options.json)


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run where its newest checkpoint left off."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    env: str | None = None
    """The run's environment again if its id is module:Id: only what is named here is imported."""
    network: str | None = None
    """The run's own network again, as module:object, where it has one."""
    total_steps: int | None = None
    """A new budget of environment steps; the run's own if not given."""
    checkpoint_every: int | None = None
    """Save whenever training passes a multiple of so many steps, beside once a minute."""
    threads: int | None = None
    """Physics threads; all cores up to 8 if not given."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Where metrics go besides metrics.jsonl; where they went so far if not given."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    quiet: bool = False
    """Show no progress."""


def resume(arguments: Sequence[str]) -> None:
    """`tether resume RUN`."""
    options = parse(ResumeOptions, arguments, prog="tether resume")
    trained = training.resume(
        options.run,
        env=options.env,
        network=named_object("--network", options.network),
        total_steps=options.total_steps,
        checkpoint_every=options.checkpoint_every,
        threads=options.threads,
        sinks=options.sinks,
        progress=not options.quiet,
    )
    _report(trained, options.json)


@dataclass(frozen=True)
class EvaluateOptions:
    """Run whole episodes with a run's policy, in its own environment."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    env: str | None = None
    """Environment to evaluate in; the run's own if not given. One whose id is module:Id must be
    given: only what is named here is imported."""
    network: str | None = None
    """The run's own network again, as module:object, where it has one."""
    episodes: int = 20
    """How many episodes."""
    seed: int = EVALUATION_SEED
    """Environment i starts from seed + i."""
    sampled: bool = False
    """Sample actions instead of taking the most probable."""
    video: Path | None = None
    """Also film one episode into this MP4 file."""
    record: Path | None = None
    """Also keep the episodes in this folder (new or empty), as demonstrations for bc."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def evaluate(arguments: Sequence[str]) -> None:
    """`tether evaluate RUN`."""
    options = parse(EvaluateOptions, arguments, prog="tether evaluate")
    network = named_object("--network", options.network)
    if options.video is not None:
        from tether.control.video import film

        # First, so that a film which cannot be leaves no recording in the way of its mend.
        film(options.run, options.video, seed=options.seed, env=options.env, network=network)
    evaluation = training.evaluate_run(
        options.run,
        episodes=options.episodes,
        seed=options.seed,
        deterministic=not options.sampled,
        env=options.env,
        network=network,
        record=options.record,
    )
    result: dict[str, Any] = {"run": str(options.run), **evaluation.summary()}
    if options.record is not None:
        result["demonstrations"] = str(options.record)
    if options.video is not None:
        result["video"] = str(options.video)
    say(
        f"return {result['return_mean']:.1f} +- {result['return_std']:.1f} over "
        f"{result['episodes']} episodes"
        + (f"; film: {options.video}" if options.video is not None else "")
        + (f"; demonstrations: {options.record}" if options.record is not None else "")
    )
    if options.json:
        print_json(result)


@dataclass(frozen=True)
class ListOptions:
    """List what there is."""

    json: bool = False
    """Print one JSON object as the last line of stdout."""


def methods(arguments: Sequence[str]) -> None:
    """`tether methods`."""
    options = parse(ListOptions, arguments, prog="tether methods")
    if options.json:
        print_json({name: method.summary for name, method in METHODS.items()})
        return
    for name, method in METHODS.items():
        print(f"{name:14}{method.summary}")


def envs(arguments: Sequence[str]) -> None:
    """`tether envs`."""
    from tether.control.envs import list_environments

    options = parse(ListOptions, arguments, prog="tether envs")
    known = list_environments()
    if options.json:
        print_json({entry.id: {"door": entry.door, "note": entry.note} for entry in known})
        return
    for entry in known:
        print(f"{entry.id:32}{entry.door:12}{entry.note}")


def _parse_train(method: str, config_class: Any, base: Any, arguments: Sequence[str]) -> Any:
    command = make_dataclass(
        "Train",
        [
            ("options", Annotated[TrainOptions, tyro.conf.arg(name="run")]),
            ("settings", Annotated[config_class, tyro.conf.arg(name=method)]),
        ],
        frozen=True,
    )
    missing: Any = tyro.MISSING
    parsed: Any = parse(
        command,
        arguments,
        prog=f"tether train {method}",
        default=command(TrainOptions(env=missing), base),
    )
    return parsed.options, parsed.settings


def _train_seeds(method: str, options: TrainOptions, config: Any, kwargs: dict[str, Any]) -> None:
    try:
        seeds = [int(word) for word in (options.seeds or "").split(",")]
    except ValueError:
        raise UserError(f"--seeds is {options.seeds!r}; expected integers such as 0,1,2") from None
    from tether.control.seeds import train_seeds

    results = train_seeds(
        method,
        options.env,
        seeds,
        preset=options.preset,
        total_steps=options.total_steps,
        out=options.out,
        init_from=options.init_from,
        network=named_object("--network", options.network),
        env_kwargs=kwargs,
        checkpoint_every=options.checkpoint_every,
        threads=options.threads,
        sinks=options.sinks,
        progress=not options.quiet,
        **config.model_dump(),
    )
    for trained in results.runs:
        _report(trained, False)
    if options.json:
        print_json(results.summary())


def _report(trained: training.Trained, as_json: bool) -> None:
    summary = trained.summary()
    mean, std = summary["return_mean"], summary["return_std"]
    score = "no episode ended" if mean is None else f"return {mean:.1f} +- {std:.1f}"
    say(
        f"{summary['steps']:,} steps in {summary['seconds']:.1f} s "
        f"({summary['steps_per_second']:,.0f}/s); {score}; run: {summary['run']}"
    )
    if as_json:
        print_json(summary)


def _json_object(text: str) -> dict[str, Any]:
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--env-kwargs is {text!r}, which is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"--env-kwargs is {text!r}; expected a JSON object such as '{{}}'")
    return value
