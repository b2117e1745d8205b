"""What evaluations found of a run: ``evaluations.json``, which the report shows.

Each has ``step``, at which the run stood; ``settings``, what was asked for; ``attributes``, what
was measured; ``found``, all of it as the command prints it. An attribute has ``title``, ``value``,
``interval`` (or None), ``other``, the value of the policy it was compared with (or None), and
``cannot_tell``, a sentence on what the number leaves open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tether.errors import UserError
from tether.learning.storage.durable import write_json

EVALUATIONS_FILE: Final = "evaluations.json"
_LIST: Final = "evaluations"


def keep_evaluation(
    run: Path,
    *,
    step: int,
    settings: Mapping[str, Any],
    found: Mapping[str, Any],
    attributes: Sequence[Mapping[str, Any]],
) -> None:
    """Adds an evaluation to those of a run; one with the same settings takes the other's place.

    Args:
        run: the run's folder.
        step: at which it stood.
        settings: JSON-able.
        found: JSON-able.
        attributes: as the module says.

    Raises:
        UserError: the file that is there cannot be read.
        RunError: it cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    others = [one for one in read_evaluations(run) if one.get("settings") != settings]
    new = {"step": step, "settings": settings, "attributes": attributes, "found": found}
    write_json(run / EVALUATIONS_FILE, {_LIST: [*others, new]})


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, the latest last; none where there is no file.

    Raises:
        UserError: the file is not what :func:`keep_evaluation` writes.
    """
    path = run / EVALUATIONS_FILE
    if not path.exists():
        return []
    try:
        evaluations = json.loads(path.read_text(encoding="utf-8"))[_LIST]
        return [
            {**one, "attributes": [dict(row) for row in one["attributes"]]} for one in evaluations
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {path}: {error}; remove it and evaluate the run again"
        ) from error
