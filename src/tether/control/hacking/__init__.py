"""Environments in which learning the reward that is paid loses the one that was meant.

Importing this package registers them with Gymnasium::

    import gymnasium
    import tether.control.hacking

    env = gymnasium.make("tether/BoatRace-v0")

Tether's own commands know them without an import. Each pays a proxy as its reward and reports what
was meant as ``info["true_reward"]`` at every step; ``reward="repaired"`` pays a proxy without the
loophole and ``reward="true"`` pays what was meant. At the end of an episode ``info["statistics"]``
holds numbers that tell hacking from honest behaviour.
"""

from __future__ import annotations

import gymnasium

IDS = (
    "tether/BoatRace-v0",
    "tether/CoveredSensor-v0",
    "tether/GateCheetah-v0",
    "tether/SleepingWalker-v0",
)
"""The environments' Gymnasium ids."""

_ENTRIES = {
    "tether/BoatRace-v0": ("tether.control.hacking.boat_race:BoatRace", 100),
    "tether/CoveredSensor-v0": ("tether.control.hacking.covered_sensor:CoveredSensor", 100),
    "tether/GateCheetah-v0": ("tether.control.hacking.gate_cheetah:GateCheetah", 200),
    "tether/SleepingWalker-v0": ("tether.control.hacking.sleeping_walker:SleepingWalker", 1000),
}


def register() -> None:
    """Registers the environments with Gymnasium; those that are registered stay as they are."""
    for name, (entry_point, limit) in _ENTRIES.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point, max_episode_steps=limit)


register()
