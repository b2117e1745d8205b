"""Trials that the result of an earlier study holds, so that they are not done again.

A study of one more method, or of more seeds, then costs no more than what is new in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tether.arguments import say
from tether.errors import UserError
from tether.learning.storage.durable import write_json
from tether.studies.provenance import PROVENANCE


def take_known(file: Path, folder: Path, wanted: Mapping[str, Mapping[str, Any]]) -> int:
    """Writes the trials of a study's JSON file into the folder of another, as done.

    What the folder holds already stays as it is, and what the other study has no use for is left
    out.

    Args:
        file: that a study wrote, with ``trials``, each with its settings and result, and
            ``protocol``, whose versions of the code become those of each trial.
        folder: of the study.
        wanted: the trials that the study is made of, name to settings.

    Returns:
        How many trials were taken.

    Raises:
        UserError: the file cannot be read, or has no trials with settings, or has one of those that
            are wanted with other settings; or the folder cannot be written.
    """
    trials, versions = _read(file)
    found = {name: trial for name, trial in trials.items() if name in wanted}
    for name, trial in found.items():
        if not same_settings(trial["settings"], wanted[name]):
            raise UserError(
                f"{file} holds the trial {name} with other settings; leave the file out, or give "
                "the settings that it was made with"
            )
    taken = 0
    for name, trial in found.items():
        place = folder / name
        if place.exists():
            continue
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write to {place}: {error.strerror or error}") from error
        result = {key: value for key, value in trial.items() if key != "settings"}
        write_json(place / "settings.json", trial["settings"])
        write_json(place / PROVENANCE, {"code": versions})
        write_json(place / "result.json", result)
        taken += 1
    say(f"{taken} of {len(trials)} trials taken from {file}")
    return taken


def same_settings(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether settings that were read from JSON are those that are wanted, tuples being lists."""
    return bool(recorded == json.loads(json.dumps(wanted)))


def _read(file: Path) -> tuple[Mapping[str, Mapping[str, Any]], list[str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}; expected the JSON file of a study") from None
    try:
        trials, versions = content["trials"], content["protocol"]["code"]
        complete = all(
            isinstance(trial["settings"], dict) and Path(name).name == name
            for name, trial in trials.items()
        )
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(
            f"{file} has no trials with their settings; expected the JSON file of figure3, table1, "
            "christiano, careless or hacking"
        )
    return trials, [str(version) for version in versions]
