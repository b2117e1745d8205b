"""Reads the folder that an export of a policy wrote, wherever it was carried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tether.control.policy import Policy, PolicySpec
from tether.errors import RunError, UserError
from tether.learning.storage.checkpoint import load_checkpoint

POLICY: Final = "policy.safetensors"
CONFIG: Final = "config.json"

FORMAT: Final = 1
"""Raised when an older tether would misread a newer folder."""


def is_policy_folder(folder: str | Path) -> bool:
    """Whether a folder holds an exported policy, rather than a run."""
    path = Path(folder)
    return (path / POLICY).is_file() and not (path / "run.json").exists()


def load_policy_folder(folder: str | Path) -> Policy:
    """The policy in a folder of :mod:`tether.control.export.hub`; nothing in it is executed.

    Raises:
        UserError: the folder is damaged, or was written by a newer tether.
    """
    path = Path(folder)
    config = _config(path / CONFIG)
    if config.get("format") != FORMAT:
        raise RunError(
            f"{path / CONFIG} has format {config.get('format')!r}; this tether reads {FORMAT}; "
            "upgrade tether-rl, or export the run again"
        )
    state, _ = load_checkpoint(path / POLICY)
    try:
        contents: Any = state
        return Policy.from_state(PolicySpec.from_json(config["policy"]), contents["policy"])
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} holds no complete policy ({error!r}); export it again") from error


def _config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    return content
