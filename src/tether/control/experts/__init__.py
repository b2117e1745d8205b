"""Demonstrations of experts that come with tether, found by name.

========================  =====================================================================
``cartpole-expert``       10 episodes of CartPole-v1, each of the full 500 steps, with a policy's
                          most probable actions after 60,000 steps of PPO
========================  =====================================================================

It was made by::

    tether train ppo --env CartPole-v1 --total-steps 60000 --out runs/cartpole-expert
    tether evaluate runs/cartpole-expert --episodes 10 --record cartpole-expert
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

EXPERTS: Final = ("cartpole-expert",)
"""Names that ``--demonstrations`` takes beside folders."""


def expert_named(path: Path) -> Path | None:
    """The folder of an expert's demonstrations, if `path` is a name and no folder of the user's."""
    if str(path) not in EXPERTS or path.exists():
        return None
    return Path(__file__).parent / str(path)
