"""`tether prefer`: learn a policy in an environment from comparisons of its segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import create_model

from tether.arguments import json_object, options_from, parse, peek, print_json, read_toml, say
from tether.control import training
from tether.control.commands import TrainOptions, report_seeds
from tether.control.named_objects import named_object
from tether.control.preferences.config import PreferConfig, on_policy_method
from tether.control.preferences.learner import Prefer
from tether.errors import UserError
from tether.learning.seeds import parse_seeds, train_seeds


@dataclass(frozen=True)
class PreferOptions(TrainOptions):
    """Options of the run."""

    teacher: str = "oracle"
    """Who compares: oracle (by the true reward); human (people, with `tether label RUN`);
    module:function (called with the segments of a query, returns the probability that the first is
    better); or a file of answers (.jsonl or .sqlite)."""
    method: str | None = None
    """The on-policy method that learns from the learned reward; ppo if not given, with the preset
    paper trpo. Its settings are options too."""


def prefer(arguments: Sequence[str]) -> None:
    """`tether prefer --env ID --labels N --teacher T ...`."""
    preset, file = peek(arguments, "--preset") or "default", peek(arguments, "--config")
    settings: dict[str, Any] = read_toml(Path(file)) if file is not None else {}
    missing: Any = tyro.MISSING
    given = options_from(PreferOptions, {"env": missing}, settings, source=file)
    if preset not in Prefer.presets:
        raise UserError(f"unknown preset {preset!r}; known: {', '.join(Prefer.presets)}")
    method = peek(arguments, "--method") or given.method
    if method is not None:
        settings["policy_method"] = method
    base: Any = training.configure("prefer", preset, settings)
    options, config = _parse(given, base, arguments)
    chosen: dict[str, Any] = {
        "env": options.env,
        "preset": options.preset,
        "config": config,
        "teacher": options.teacher,
        "total_steps": options.total_steps,
        "out": options.out,
        "init_from": options.init_from,
        "network": named_object("--network", options.network),
        "env_kwargs": json_object("--env-kwargs", options.env_kwargs),
        "threads": options.threads,
        "checkpoint_every": options.checkpoint_every,
        "sinks": options.sinks,
        "progress": not options.quiet,
    }
    if options.seeds is not None:
        if options.seed is not None:
            raise UserError("--seed and --seeds are both given; give one of them")
        seeds = parse_seeds(options.seeds)
        report_seeds(train_seeds(training.ENGINE, "prefer", seeds, **chosen), options.json)
        return
    trained = training.train("prefer", seed=options.seed or 0, **chosen)
    say(trained.line())
    if options.json:
        print_json(trained.summary())


def _parse(options: PreferOptions, base: PreferConfig, arguments: Sequence[str]) -> Any:
    kind = on_policy_method(base.policy_method).config_class
    # The settings of the one method that is chosen become options; the method is one already.
    fields: dict[str, Any] = {
        "policy": (Annotated[kind, tyro.conf.arg(name=base.policy_method)], base.policy),
        "policy_method": (tyro.conf.Suppress[str], base.policy_method),
    }
    settings: Any = create_model(
        "PreferSettings", __base__=PreferConfig, __doc__=PreferConfig.__doc__, **fields
    )
    values = {name: getattr(base, name) for name in PreferConfig.model_fields}
    command = make_dataclass(
        "Prefer",
        [
            ("options", Annotated[PreferOptions, tyro.conf.arg(name="run")]),
            ("settings", Annotated[settings, tyro.conf.arg(name="prefer")]),
        ],
        frozen=True,
    )
    parsed: Any = parse(
        command, arguments, prog="tether prefer", default=command(options, settings(**values))
    )
    return parsed.options, parsed.settings
