"""Which seeds and which code a result comes from.

Presets are tuned on development seeds and reported on report seeds, which nobody looks at before.
A result says which it has, and which versions of tether's code its trials ran on.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import tether
from tether.errors import UserError
from tether.learning.storage.durable import write_json
from tether.version import __version__

REPORT_SEEDS: Final = range(10)
"""The seeds of what is published."""
DEVELOPMENT_SEEDS: Final = 1000
"""The first of the seeds that presets are tuned on."""
PROVENANCE: Final = "provenance.json"
"""In a trial's folder: the versions of the code that worked on it."""


def kind_of(seeds: Sequence[int]) -> str:
    """``report``, ``development`` or, of seeds in between, ``further``.

    Raises:
        UserError: development seeds among others: a result is for tuning or for publication.
    """
    tuning = [seed for seed in seeds if seed >= DEVELOPMENT_SEEDS]
    if tuning and len(tuning) < len(seeds):
        other = next(seed for seed in seeds if seed < DEVELOPMENT_SEEDS)
        raise UserError(
            f"seeds have {other} and {tuning[0]}; seeds from {DEVELOPMENT_SEEDS} on are for "
            f"development, those of a report are {REPORT_SEEDS[0]} to {REPORT_SEEDS[-1]}: give "
            "them to two studies, each with its own --out"
        )
    if tuning:
        return "development"
    return "report" if all(seed in REPORT_SEEDS for seed in seeds) else "further"


@cache
def code_version() -> str:
    """Tether's version and, from a git checkout, the last commit that changed its code.

    Such as ``0.1.0``, ``0.1.0+3f2a9c1d04be`` or, with uncommitted changes,
    ``0.1.0+3f2a9c1d04be.changed``.
    """
    package = Path(tether.__file__).parent
    if not any((parent / ".git").exists() for parent in package.parents):
        return __version__
    try:
        commit = _git(package, "log", "-1", "--format=%H", "--", ".")[:12]
        changed = _git(package, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return __version__
    # A package that lies in somebody's repository without being part of it has no commit.
    return f"{__version__}+{commit}{'.changed' if changed else ''}" if commit else __version__


def note_version(place: Path) -> None:
    """Adds the code's version to those that worked on a trial."""
    versions = versions_at(place)
    if code_version() not in versions:
        write_json(place / PROVENANCE, {"code": [*versions, code_version()]})


def versions_at(place: Path) -> list[str]:
    """The versions of the code that worked on a trial; empty for a trial from before they were."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((place / PROVENANCE).read_text(encoding="utf-8"))
        return [str(version) for version in content["code"]]
    return []


def protocol(
    seeds: Mapping[str, Sequence[int]] | Sequence[int], places: Sequence[Path]
) -> dict[str, Any]:
    """What a result says of itself.

    Args:
        seeds: of the trials; by method where methods have different ones.
        places: the folders of the trials.

    Returns:
        ``seeds`` as given; ``kind`` of seeds; ``code``, the versions that the trials ran on;
        ``one_version``, whether it is the same for all. A trial that does not say counts as
        ``unknown``.
    """
    by_method = seeds if isinstance(seeds, Mapping) else {"": seeds}
    every = sorted({seed for chosen in by_method.values() for seed in chosen})
    versions = sorted({v for place in places for v in versions_at(place) or ["unknown"]})
    return {
        "seeds": {m: list(s) for m, s in seeds.items()}
        if isinstance(seeds, Mapping)
        else list(seeds),
        "kind": kind_of(every),
        "code": versions,
        "one_version": len(versions) <= 1,
    }


def protocol_lines(found: Mapping[str, Any]) -> list[str]:
    """The same for a reader, from :func:`protocol`."""
    said = {
        "report": "report seeds, which presets are not tuned on",
        "development": "development seeds: a result to tune by, not to publish",
        "further": "seeds beyond the report's 0 to 9, which presets are not tuned on",
    }
    code = ", ".join(found["code"]) or "unknown"
    lines = [f"{_spans(found['seeds'])}: {said[found['kind']]}; tether {code}"]
    if not found["one_version"]:
        lines.append(
            f"the trials come from {len(found['code'])} versions of tether's code; do them again "
            "in a new --out for a result of one version"
        )
    return lines


def _spans(seeds: Mapping[str, Sequence[int]] | Sequence[int]) -> str:
    if not isinstance(seeds, Mapping):
        return f"seeds {_span(seeds)}"
    if len({tuple(chosen) for chosen in seeds.values()}) == 1:
        return f"seeds {_span(next(iter(seeds.values())))}"
    return "seeds " + ", ".join(f"{method} {_span(chosen)}" for method, chosen in seeds.items())


def _span(seeds: Sequence[int]) -> str:
    """0-9 for ten in a row, else each."""
    first, last = min(seeds), max(seeds)
    if list(seeds) == list(range(first, last + 1)) and len(seeds) > 1:
        return f"{first}-{last}"
    return ",".join(map(str, seeds))


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()
