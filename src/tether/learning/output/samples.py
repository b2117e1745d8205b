"""What a run keeps for people to read: ``samples.jsonl``, one JSON object per line.

A row has ``step`` and whatever its method thinks worth seeing; of language models that is
``prompt``, ``completion``, ``score``, ``kl``, ``finished`` and the ids.
"""

import json
from pathlib import Path
from typing import Any, Final

from tether.errors import UserError

SAMPLES_FILE: Final = "samples.jsonl"


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """Reads ``samples.jsonl``, also while a run is still writing it.

    Args:
        path: the file, or the run's folder.

    Returns:
        One dict per finished line.

    Raises:
        UserError: there is no such file, or a line is not a JSON object.
    """
    path = Path(path)
    path = path / SAMPLES_FILE if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read samples {path}: {reason}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not a JSON object") from error
    return rows
