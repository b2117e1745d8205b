"""Demonstrations: what somebody saw and did, as state-action pairs for behaviour cloning.

A folder of tether's own (`tether evaluate RUN --record DIR`) holds two files:

=========================  =====================================================================
``demonstrations.json``    format, environment, spaces, number of episodes and steps
``episodes.safetensors``   observation (M, *obs), flat and not normalized; action (M, *act), as the
                           environment got it; reward (M,); length, terminated, truncated (E,);
                           final_observation (E, *obs): M steps of E episodes, one after another
=========================  =====================================================================

The second is sealed by a checksum, and the folder appears under its name only when it is whole.
Minari's datasets are read by :mod:`tether.control.minari_dataset`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from tether.control.demonstration_data import (
    Demonstrations,
    check_spaces,
    one_line,
    place_of,
    ragged_from,
)
from tether.control.distributions import ActionHead
from tether.control.envs import Step
from tether.control.envs.arrays import policy_space
from tether.control.envs.spaces_json import space_from_json, space_in_words, space_to_json
from tether.control.experts import EXPERTS, expert_named
from tether.errors import RunError, UserError
from tether.learning.storage.checkpoint import load_checkpoint, save_checkpoint
from tether.learning.storage.durable import replaced, sync_folder, write_error

FORMAT = 1
FACTS = "demonstrations.json"
EPISODES = "episodes.safetensors"


class _Running(NamedTuple):
    """The episode under way in one environment."""

    observation: list[np.ndarray]
    action: list[np.ndarray]
    reward: list[float]


class Recorder:
    """Keeps whole episodes while they are played, and writes them as demonstrations.

    Raises:
        UserError: the folder is there already and is not empty, or cannot be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"--record {folder} is a file; expected a new or empty folder")
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"--record {folder} is not empty; expected a new or empty folder")
        except OSError as error:
            raise UserError(f"cannot use --record {folder}: {error.strerror or error}") from error
        self._running: dict[int, _Running] = {}
        self._played: dict[int, int] = {}
        self._ended: list[tuple[tuple[int, int], _Running, bool, bool, np.ndarray]] = []

    def before(self, observation: np.ndarray, action: np.ndarray) -> None:
        """Note what N environments show (N, *obs) and what is done (N, *act)."""
        for n, (seen, done) in enumerate(zip(observation, action, strict=True)):
            running = self._running.setdefault(n, _Running([], [], []))
            running.observation.append(np.array(seen))
            running.action.append(np.array(done))

    def after(self, step: Step, counts: np.ndarray) -> None:
        """Note what came of it; episodes that end where `counts` (N,) is false are forgotten."""
        for n, running in list(self._running.items()):
            running.reward.append(float(step.reward[n]))
            terminated, truncated = bool(step.terminated[n]), bool(step.truncated[n])
            if not (terminated or truncated or not counts[n]):
                continue
            del self._running[n]
            if counts[n]:
                number = self._played[n] = self._played.get(n, -1) + 1
                final = np.array(step.final_observation[n])
                self._ended.append(((number, n), running, terminated, truncated, final))

    def save(self, *, env: str, source_space: gym.Space[Any], head: ActionHead) -> None:
        """Write the folder, whole or not at all, in the order of the evaluation's results.

        Raises:
            UserError: it cannot be written (disk full, no permission).
        """
        ended = sorted(self._ended, key=lambda one: one[0])
        arrays: dict[str, Any] = {
            "observation": np.stack([o for _, one, *_ in ended for o in one.observation]),
            "action": np.stack([a for _, one, *_ in ended for a in one.action]),
            "reward": np.array([r for _, one, *_ in ended for r in one.reward]),
            "length": np.array([len(one.reward) for _, one, *_ in ended], np.int64),
            "terminated": np.array([terminated for *_, terminated, _, _ in ended]),
            "truncated": np.array([truncated for *_, truncated, _ in ended]),
            "final_observation": np.stack([final for *_, final in ended]),
        }
        facts = {
            "format": FORMAT,
            "env": env,
            "observation_space": space_to_json(source_space),
            "action_space": space_to_json(head.space),
            "episodes": len(ended),
            "steps": len(arrays["reward"]),
        }
        folder = self.folder.absolute()
        growing = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            growing.mkdir(parents=True)
            save_checkpoint(growing / EPISODES, arrays, {})
            with replaced(growing / FACTS) as file:
                file.write(json.dumps(facts, indent=2).encode() + b"\n")
            growing.replace(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise write_error(self.folder, error) from error
        finally:
            shutil.rmtree(growing, ignore_errors=True)


def load_demonstrations(
    path: str | Path, source_space: gym.Space[Any], head: ActionHead
) -> Demonstrations:
    """Read demonstrations for an environment: a folder of tether's own, or a Minari dataset.

    Args:
        path: the folder, or the name of an expert that comes with tether (:data:`EXPERTS`).
        source_space: the environment's own observation space.
        head: of the environment's action space.

    Raises:
        UserError: no demonstrations there; of other spaces; damaged, empty, ragged; NaN or
            infinity; or an action that is not one of the space.
    """
    folder = Path(path)
    try:
        folder = expert_named(folder) or folder
        own, minari = (
            any((folder / place).is_file() for place in places)
            for places in ((FACTS,), ("metadata.json", "data/metadata.json"))
        )
        missing = not folder.exists()
    except OSError as error:
        raise UserError(f"cannot read demonstrations {path}: {error.strerror or error}") from error
    if own:
        pairs = _load_own(folder, source_space, head)
    elif minari:
        from tether.control.minari_dataset import load_minari

        pairs = load_minari(folder, source_space, head)
    elif missing:
        raise UserError(
            f"there are no demonstrations at {path}: no such folder; give a folder, or the name of "
            f"an expert that comes with tether: {', '.join(EXPERTS)}"
        )
    else:
        raise UserError(
            f"there are no demonstrations at {path}: expected a folder written by `tether evaluate "
            f"RUN --record DIR` ({FACTS}) or a Minari dataset (data/metadata.json)"
        )
    return _checked(path, pairs, head)


def _load_own(folder: Path, source_space: gym.Space[Any], head: ActionHead) -> Demonstrations:
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        if not isinstance(facts, dict):
            raise UserError(f"{FACTS} is damaged: it is not a JSON object")
        if facts["format"] != FORMAT:
            raise UserError(f"they have format {facts['format']!r}; this tether reads {FORMAT}")
        theirs = (
            space_from_json(facts["observation_space"]),
            space_from_json(facts["action_space"]),
        )
    except (OSError, LookupError, TypeError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise UserError(f"demonstrations {folder}: {error}") from error
        raise UserError(
            f"demonstrations {folder}: {FACTS} is damaged: {one_line(error)}"
        ) from error
    check_spaces(folder, theirs, (source_space, head.space))
    try:
        state, _ = load_checkpoint(folder / EPISODES)
    except RunError as error:
        raise UserError(f"demonstrations {folder} cannot be used: {error}") from error
    found: dict[str, Any] = {
        name: state.get(name) for name in ("observation", "action", "reward", "length")
    }
    missing = [name for name, array in found.items() if not isinstance(array, np.ndarray)]
    if missing:
        raise UserError(f"demonstrations {folder} have no {missing[0]} in {EPISODES}")
    observation, action, length = (found[k] for k in ("observation", "action", "length"))
    ragged_from(folder, length, observation=observation, action=action, reward=found["reward"])
    shapes = (policy_space(source_space).shape, head.space.shape or ())
    for name, array, shape in zip(
        ("observation", "action"), (observation, action), shapes, strict=True
    ):
        if array.shape[1:] != shape:
            raise UserError(
                f"demonstrations {folder}: each {name} has shape {array.shape[1:]}, its space "
                f"promises {shape}"
            )
    return Demonstrations(observation, action, length)


def _checked(path: str | Path, pairs: Demonstrations, head: ActionHead) -> Demonstrations:
    """Checked pairs whose actions are as a policy stores them."""
    observation, action, length = pairs
    if not len(length):
        raise UserError(f"demonstrations {path} are empty: expected at least one episode")
    if (length < 1).any():
        first = int(np.argmax(length < 1))
        raise UserError(f"demonstrations {path}: episode {first} is empty; leave it out")
    for name, array in (("observation", observation), ("action", action)):
        if array.dtype.kind not in "fiub":
            raise UserError(f"demonstrations {path}: {name} holds {array.dtype}, expected numbers")
        bad = ~np.isfinite(array.reshape(len(array), -1))
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            value = array.reshape(len(array), -1)[row, column]
            raise UserError(
                f"demonstrations {path}: {name} {place_of(row, length)} holds {value}; leave the "
                "episode out"
            )
    stored = head.from_environment(action)
    if isinstance(head.space, gym.spaces.Box):
        # Recorders round: a bound in float64 and its action in float32 may differ in the last bit.
        tolerance = 1e-5 * (1 + np.abs(action))
        bad = (
            (action < head.space.low - tolerance) | (action > head.space.high + tolerance)
        ).reshape(len(action), -1)
        if bad.any():
            row = int(np.argwhere(bad)[0, 0])
            raise UserError(
                f"demonstrations {path}: action {place_of(row, length)} is {action[row]}, which is "
                f"outside of {space_in_words(head.space)}; give the actions that the environment "
                "got, in its units"
            )
    else:
        most = np.array(head.sizes or (2,) * head.outputs)
        bad = (stored < 0) | (stored >= most)
        # What is cut off when a fraction is stored as an integer would go unseen.
        bad |= action.reshape(stored.shape) % 1 != 0
        if bad.any():
            row = int(np.argwhere(bad)[0, 0])
            raise UserError(
                f"demonstrations {path}: action {place_of(row, length)} is {action[row]}, which is "
                f"not in {head.space}"
            )
    return Demonstrations(np.ascontiguousarray(observation), stored, length.astype(np.int64))
