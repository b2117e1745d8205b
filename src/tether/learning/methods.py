"""Registries of methods: where each lives, what it is, and how it is found by name or by class."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tether.errors import UserError
from tether.learning.config import Config


@dataclass(frozen=True)
class Method:
    """Where a method lives and what it is.

    Attributes:
        module: that has the learner class; imported when the method is first used.
        learner: name of the class.
        summary: one line.
        progress_metric: the measurement shown while it trains.
    """

    module: str
    learner: str
    summary: str
    progress_metric: str = "return/mean"

    def load(self) -> Any:
        """The learner class."""
        return getattr(importlib.import_module(self.module), self.learner)


def find_method(methods: Mapping[str, Method], name: str) -> Any:
    """The learner class of a method of a registry.

    Raises:
        UserError: there is no such method; the message names the closest.
    """
    if name not in methods:
        close = difflib.get_close_matches(name, methods, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(methods)}"
        raise UserError(f"unknown method {name!r}; {hint}")
    return methods[name].load()


def name_of_class(learner: type) -> str:
    """What a run records of a method that is given as a class: ``module:Class``."""
    return f"{learner.__module__}:{learner.__qualname__}"


def check_learner_class(learner: type, members: Sequence[str], base: str) -> None:
    """Checks that a class given as a method has what an engine calls.

    Args:
        learner: the class.
        members: names of methods, properties and class attributes.
        base: the class to derive from, named in the error.

    Raises:
        UserError: members are missing, abstract, or ``config_class`` is no :class:`Config`.
    """
    abstract: frozenset[str] = getattr(learner, "__abstractmethods__", frozenset())
    missing = [name for name in members if not hasattr(learner, name) or name in abstract]
    missing += sorted(abstract - set(missing))
    if missing:
        raise UserError(
            f"the method class {name_of_class(learner)} has no {', '.join(missing)}; derive from "
            f"{base}, or define {'it' if len(missing) == 1 else 'them'}"
        )
    config_class = learner.config_class  # type: ignore[attr-defined]
    if not (isinstance(config_class, type) and issubclass(config_class, Config)):
        raise UserError(
            f"the method class {name_of_class(learner)} has the config_class {config_class!r}; "
            "expected a class that derives from tether.learning.Config"
        )
