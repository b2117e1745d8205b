"""The engines by name, and which of them a method or a run belongs to.

Each is loaded when it is first asked for. An engine of another package is one more entry of
:data:`ENGINES`.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tether.errors import UserError

if TYPE_CHECKING:
    from tether.learning.engine import Engine
    from tether.learning.methods import Method

ENGINES: dict[str, tuple[str, str]] = {
    "control": ("tether.control.methods", "tether.control.training"),
    "language": ("tether.language.methods", "tether.language.runs.training"),
}
"""By name: the module with the registry ``METHODS``, which is cheap to import, and the module
with the engine, ``ENGINE``."""


def methods_of(engine: str) -> dict[str, Method]:
    """The registry of an engine."""
    methods: dict[str, Method] = importlib.import_module(ENGINES[engine][0]).METHODS
    return methods


def engine_named(name: str) -> Engine[Any, Any]:
    """An engine by its name."""
    engine: Engine[Any, Any] = importlib.import_module(ENGINES[name][1]).ENGINE
    return engine


def engine_of_method(method: str | type[Any]) -> Engine[Any, Any]:
    """The engine that trains a method.

    Raises:
        UserError: no engine has a method of this name, or the class derives from no learner.
    """
    if isinstance(method, str):
        for name in ENGINES:
            if method in methods_of(name):
                return engine_named(name)
        known = [known for name in ENGINES for known in methods_of(name)]
        close = difflib.get_close_matches(method, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise UserError(f"unknown method {method!r}; {hint}")
    if not isinstance(method, type):
        raise UserError(
            f"method is {method!r}; expected a method's name or a class that derives from "
            "PolicyLearner or LanguageLearner"
        )
    modules = {base.__module__.split(".")[1] for base in method.__mro__ if _is_ours(base)}
    for name in ENGINES:
        if name in modules:
            return engine_named(name)
    raise UserError(
        f"the method class {method.__name__} derives from no learner; derive from "
        "tether.control.policy_learner.PolicyLearner or "
        "tether.language.learners.language_learner.LanguageLearner"
    )


def engine_of_run(run: str | Path) -> Engine[Any, Any]:
    """The engine that trained a run, or the runs of a folder of several seeds.

    Raises:
        UserError: not a run's folder, or a run that whoever made it drives.
    """
    from tether.learning.run import Run
    from tether.learning.seeds import is_seeds_folder, read_record

    if is_seeds_folder(run):
        return engine_named(read_record(Path(run)).engine)
    opened = Run.open(run)
    if opened.engine is None:
        own = " (python -m tether.language.pretraining)" * (opened.method == "pretraining")
        raise UserError(
            f"run {run} was trained by {opened.method}, which no engine of tether has; continue it "
            f"where it was started{own}"
        )
    if opened.engine not in ENGINES:
        raise UserError(
            f"run {run} was trained by the engine {opened.engine!r}; this tether has "
            f"{', '.join(ENGINES)}"
        )
    return engine_named(opened.engine)


def _is_ours(base: type) -> bool:
    return base.__module__.startswith("tether.")
