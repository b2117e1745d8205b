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
    from tether.control.training import Trained, evaluate_run, load, resume, train
    from tether.exporting import export

_HOMES = {
    "Trained": "tether.control.training",
    "evaluate_run": "tether.control.training",
    "export": "tether.exporting",
    "load": "tether.control.training",
    "resume": "tether.control.training",
    "train": "tether.control.training",
}

__all__ = ["Trained", "__version__", "evaluate_run", "export", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
