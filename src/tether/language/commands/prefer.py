"""`tether prefer --model M --data D`: a language model learns from comparisons, in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import UserError
from tether.language.methods.rlhf.reward_settings import WHAT_FITS
from tether.language.models.from_run import Setup
from tether.language.runs.preference_rounds import HUMAN, Round, RoundSettings
from tether.language.runs.preference_rounds import prefer as learn


@dataclass(frozen=True)
class PreferOptions:
    """Options of the run."""

    teacher: str
    """Who compares: human (people, with `tether label OUT`); or a score that decides which answer
    is better: sentiment, lexicon, module:function, or a run of `tether reward`."""
    out: Path
    """The folder; the same command continues where it was stopped."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""
    quiet: bool = False
    """Shows no progress."""


def prefer(arguments: Sequence[str]) -> None:
    """`tether prefer --model M --data D --teacher T --out OUT`."""
    command = make_dataclass(
        "Prefer",
        [
            ("options", Annotated[PreferOptions, tyro.conf.arg(name="run")]),
            ("setup", Annotated[Setup, tyro.conf.arg(name="model and data")]),
            ("settings", Annotated[RoundSettings, tyro.conf.arg(name="prefer")]),
        ],
        frozen=True,
    )
    missing: Any = tyro.MISSING
    default = command(PreferOptions(missing, missing), Setup.load({}), RoundSettings.load({}))
    command.__doc__ = "Learn from comparisons of answers, in rounds."
    parsed: Any = parse(command, arguments, prog="tether prefer", default=default)
    options, setup, settings = parsed.options, parsed.setup, parsed.settings
    if setup.model is None or setup.data is None:
        raise UserError("model and data are needed: tether prefer --model M --data D")
    if options.teacher == "oracle":
        raise UserError(f"teacher is 'oracle', which of a text needs a score; expected {WHAT_FITS}")

    def tell(one: Round) -> None:
        score = "" if one.score is None else f", teacher's score {one.score:.4g}"
        of = "first model" if one.policy is None else str(one.policy)
        say(f"round {one.number}: {one.labels} comparisons{score}; answers of {of}")

    if options.teacher == HUMAN:
        say(f"people compare the answers with: tether label {options.out}")
    rounds = learn(
        teacher=options.teacher,
        out=options.out,
        settings=settings,
        progress=not options.quiet,
        on_round=tell,
        **setup.dump(),
    )
    say(f"policy: {rounds[-1].policy}")
    if options.json:
        print_json(
            {
                "out": str(options.out),
                "policy": str(rounds[-1].policy),
                "rounds": [{**asdict(one), "policy": str(one.policy or "")} for one in rounds],
            }
        )
