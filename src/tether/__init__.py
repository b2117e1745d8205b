"""tether: learning policies, from the policy gradient theorem to aligned language models.

    import tether

    trained = tether.train("ppo", env="HalfCheetah-v5", total_steps=1_000_000)
    policy = tether.load(trained.run)
    action = policy.predict(observation)

Everything here is loaded when first used, so `import tether` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tether.version import __version__

if TYPE_CHECKING:
    from tether.control.policy import Policy
    from tether.control.sb3 import as_sb3
    from tether.control.training import Trained, evaluate_run, load, resume, train

_HOMES = {
    "Policy": "tether.control.policy",
    "Trained": "tether.control.training",
    "as_sb3": "tether.control.sb3",
    "evaluate_run": "tether.control.training",
    "load": "tether.control.training",
    "resume": "tether.control.training",
    "train": "tether.control.training",
}

__all__ = [
    "Policy",
    "Trained",
    "__version__",
    "as_sb3",
    "evaluate_run",
    "load",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
