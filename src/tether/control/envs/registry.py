"""Which environments there are: what `tether envs` lists, and what a mistyped id may have meant."""

from __future__ import annotations

import difflib
import importlib.util
from typing import NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id

from tether.control import hacking, tumbling

BATCHED_TASKS: tuple[str, ...] = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "Reacher-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Ant-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "Pusher-v5",
)
"""Gymnasium's tasks that the MuJoCo backend reproduces bit for bit.

All but Ant and the humanoids run on MuJoCo's batch stepper. Those three read contact forces that it
cannot give, so each of their simulations has an MjData of its own.
"""
_LOOPHOLE = "pays a proxy and reports the true reward; docs/reward-hacking.md"
_ON_MUJOCO = ("tether/GateCheetah-v0", "tether/SleepingWalker-v0")
_OWN = {
    **{name: ("mujoco" if name in _ON_MUJOCO else "gymnasium", _LOOPHOLE) for name in hacking.IDS},
    tumbling.ID: ("mujoco", "Hopper-v5 that may turn over; docs/prefer.md"),
}
_UNBATCHED = ("Ant-v5", "Humanoid-v5", "HumanoidStandup-v5")

# Packages beyond Gymnasium that families of its environments import, and Gymnasium's own extras.
_NEEDS = {
    "gymnasium.envs.box2d": ("Box2D", "box2d"),
    "gymnasium.envs.mujoco": ("mujoco", "mujoco"),
    "gymnasium.envs.phys2d": ("flax", "jax"),
    "gymnasium.envs.tabular": ("flax", "jax"),
}


class EnvironmentEntry(NamedTuple):
    """One environment that can be trained on.

    Attributes:
        id: what ``gymnasium.make`` calls it.
        backend: "mujoco" or "gymnasium", the one that ``backend="auto"`` takes.
        note: what to know before using it, or "".
    """

    id: str
    backend: str
    note: str


def list_environments() -> list[EnvironmentEntry]:
    """Every environment registered with Gymnasium that can be made, the batched tasks first.

    Environments of other packages appear once the package is imported. None is made or imported.
    """
    steppers = ("MuJoCo's batch stepper", "MuJoCo, one MjData per environment")
    batched = [EnvironmentEntry(i, "mujoco", steppers[i in _UNBATCHED]) for i in BATCHED_TASKS]
    ours = [EnvironmentEntry(name, backend, note) for name, (backend, note) in _OWN.items()]
    others = [
        EnvironmentEntry(spec.id, "gymnasium", _note(spec))
        for spec in gymnasium.registry.values()
        if spec.id not in (*BATCHED_TASKS, *_OWN) and _can_be_made(spec)
    ]
    return batched + ours + others


def close_ids(name: str) -> list[str]:
    """Up to three ids that a mistyped name may have meant, whatever its case, best first."""
    name = name.rpartition(":")[2].lower()
    ids = {entry.id.lower(): entry.id for entry in list_environments()}
    return [ids[key] for key in difflib.get_close_matches(name, ids, n=3, cutoff=0.6)]


def _can_be_made(spec: EnvSpec) -> bool:
    """Gymnasium keeps ids of environments it gave up, whose maker only raises."""
    return spec.entry_point is not None and "_raise_" not in getattr(
        spec.entry_point, "__name__", ""
    )


def _note(spec: EnvSpec) -> str:
    notes = []
    if isinstance(spec.entry_point, str):
        family = spec.entry_point.partition(":")[0].rpartition(".")[0]
        module, extra = _NEEDS.get(family, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            notes.append(f"needs {module}: pip install 'gymnasium[{extra}]'")
    latest = find_highest_version(spec.namespace, spec.name)
    if latest is not None and spec.version is not None and spec.version < latest:
        notes.append(f"superseded by {get_env_id(spec.namespace, spec.name, latest)}")
    return "; ".join(notes)
