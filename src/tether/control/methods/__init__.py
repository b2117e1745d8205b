"""The methods, by the names the command line knows; each module is loaded when first asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, NamedTuple

from tether.errors import UserError

if TYPE_CHECKING:
    from tether.control.learner import OnPolicyLearner


class Method(NamedTuple):
    """Where a method lives and what it is in one line."""

    module: str
    learner: str
    summary: str


METHODS: dict[str, Method] = {
    "ppo": Method(
        "tether.control.methods.ppo",
        "PPO",
        "proximal policy optimization, clipped objective (Schulman et al. 2017)",
    ),
}


def find_method(name: str) -> type[OnPolicyLearner]:
    """The learner class of a method.

    Raises:
        UserError: no such method; names the closest.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(METHODS)}"
        raise UserError(f"unknown method {name!r}; {mend}")
    module = importlib.import_module(METHODS[name].module)
    learner: type[OnPolicyLearner] = getattr(module, METHODS[name].learner)
    return learner
