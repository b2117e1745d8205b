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
    from tether.api import evaluate, generate, load, resume, train
    from tether.control.policy import Policy
    from tether.control.sb3 import as_sb3
    from tether.control.training import TrainedPolicy, evaluate_run
    from tether.exporting import export
    from tether.language.runs.training import TrainedModel
    from tether.learning.callbacks import BaseCallback, Every, StopOnReturn
    from tether.learning.training import Trained

_HOMES = {
    "BaseCallback": "tether.learning.callbacks",
    "Every": "tether.learning.callbacks",
    "Policy": "tether.control.policy",
    "StopOnReturn": "tether.learning.callbacks",
    "Trained": "tether.learning.engine",
    "TrainedModel": "tether.language.runs.training",
    "TrainedPolicy": "tether.control.training",
    "as_sb3": "tether.control.sb3",
    "evaluate": "tether.api",
    "evaluate_run": "tether.control.training",
    "export": "tether.exporting",
    "generate": "tether.api",
    "load": "tether.api",
    "resume": "tether.api",
    "train": "tether.api",
}

__all__ = [
    "BaseCallback",
    "Every",
    "Policy",
    "StopOnReturn",
    "Trained",
    "TrainedModel",
    "TrainedPolicy",
    "__version__",
    "as_sb3",
    "evaluate",
    "evaluate_run",
    "export",
    "generate",
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
