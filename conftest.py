"""Runs the Python blocks of README, CONTRIBUTING and docs, each page in a folder of its own.

Blocks are run as they are printed, one namespace for each page, with one exception: a training
takes at most :data:`MOST_STEPS` steps, so that a page shows a million and its test takes seconds.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

MOST_STEPS = 2048


def _begin(namespace: dict[str, Any]) -> None:
    import tempfile

    import tether
    from tether.learning.engine import Engine

    namespace["_folder"] = tempfile.TemporaryDirectory()
    namespace["_before"] = Path.cwd()
    namespace["_train"] = Engine.train
    # A page is read in a checkout, and a script's own folder is where it imports from.
    folder = Path(namespace["_folder"].name)
    (folder / "examples").symlink_to(Path(__file__).parent / "examples")
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    train = Engine.train

    @functools.wraps(train)
    def short(self: Any, *arguments: Any, **settings: Any) -> Any:
        steps = settings.get("total_steps") or MOST_STEPS
        settings["total_steps"] = min(steps, MOST_STEPS)
        settings["progress"] = False
        return train(self, *arguments, **settings)

    Engine.train = short  # type: ignore[method-assign]
    namespace["tether"] = tether


def _end(namespace: dict[str, Any]) -> None:
    from tether.learning.engine import Engine

    Engine.train = namespace["_train"]  # type: ignore[method-assign]
    os.chdir(namespace["_before"])
    sys.path.remove(namespace["_folder"].name)
    sys.modules.pop("my_envs", None)
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=0), SkipParser()],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
    setup=_begin,
    teardown=_end,
).pytest()
