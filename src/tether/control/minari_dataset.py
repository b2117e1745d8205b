"""Demonstrations in the format of Minari (Farama), read by Minari itself: HDF5, Arrow, Parquet.

A dataset's folder (``~/.minari/datasets/NAME``) holds ``data/metadata.json`` and the episodes. What
the file says about the environment that made it is never used to make one: only arrays are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tether.control.demonstration_data import Demonstrations, check_spaces, one_line
from tether.control.distributions import ActionHead
from tether.control.envs.arrays import policy_space
from tether.errors import UserError

# What Minari and the libraries below it raise at a file that is cut off, altered or not theirs.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_minari(folder: Path, source_space: gym.Space[Any], head: ActionHead) -> Demonstrations:
    """The pairs of a Minari dataset; observations flat, actions as the environment takes them.

    Raises:
        UserError: Minari is not installed, the dataset cannot be read, is of other spaces, or an
            episode's arrays do not fit together.
    """
    try:
        from minari import MinariDataset
    except ImportError as error:
        raise UserError(
            f"demonstrations {folder} are a Minari dataset, which needs Minari; run: "
            "pip install 'tether-rl[demonstrations]'"
        ) from error
    place = folder if (folder / "metadata.json").is_file() else folder / "data"
    try:
        metadata = json.loads((place / "metadata.json").read_bytes())
        described = "observation_space" in metadata and "action_space" in metadata
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error
    if not described:
        # Minari would make the environment that the file names to ask it for them.
        raise UserError(
            f"demonstrations {folder} do not record their spaces (an old Minari dataset); load and "
            "save them with a newer Minari"
        )
    observations, actions, lengths = [], [], []
    try:
        dataset = MinariDataset(place)
        check_spaces(
            folder,
            (dataset.observation_space, dataset.action_space),
            (source_space, head.space),
        )
        for number, episode in enumerate(dataset.iterate_episodes()):
            steps = len(episode.rewards)
            seen = flatten_batch(source_space, episode.observations)
            done = np.asarray(episode.actions)
            # Minari keeps the observation after the last action as well.
            if len(seen) not in (steps, steps + 1) or len(done) != steps:
                raise UserError(
                    f"demonstrations {folder} are ragged: episode {number} has {len(seen)} "
                    f"observations, {len(done)} actions and {steps} rewards"
                )
            if done.shape[1:] != (head.space.shape or ()):
                raise UserError(
                    f"demonstrations {folder}: each action of episode {number} has shape "
                    f"{done.shape[1:]}, the action space promises {head.space.shape or ()}"
                )
            observations.append(seen[:steps])
            actions.append(done)
            lengths.append(steps)
    except ImportError as error:
        raise UserError(
            f"demonstrations {folder} need another package: {one_line(error)}; run: "
            "pip install 'tether-rl[demonstrations]'"
        ) from error
    except UserError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error
    space = policy_space(source_space)
    return Demonstrations(
        np.concatenate(observations or [np.empty((0, *space.shape))]).astype(space.dtype),
        np.concatenate(actions or [np.empty((0, *(head.space.shape or ())))]),
        np.array(lengths, np.int64),
    )


def flatten_batch(space: gym.Space[Any], values: Any) -> np.ndarray:
    """Observations of a source space, stacked along a first axis, as the policy sees them.

    Row for row what :func:`tether.control.envs.arrays.flatten_observation` gives for one.

    Args:
        space: the environment's own observation space.
        values: an array (T, ...), or for a Dict or Tuple space a dict or tuple of them.

    Returns:
        (T, D), or (T, H, W, C) for images.
    """
    shape = policy_space(space).shape
    parts = _flat_parts(space, values)
    return np.concatenate(parts, axis=1).reshape(len(parts[0]), *shape)


def _flat_parts(space: gym.Space[Any], values: Any) -> list[np.ndarray]:
    spaces = gym.spaces
    if isinstance(space, spaces.Dict):
        return [p for key, part in space.spaces.items() for p in _flat_parts(part, values[key])]
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, values, strict=True)
        return [p for part, value in pairs for p in _flat_parts(part, value)]
    rows = np.asarray(values)
    rows = rows.reshape(len(rows), -1)
    if isinstance(space, spaces.Discrete):
        return [_one_hot(rows[:, 0] - space.start, int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        columns = (rows - np.ravel(space.start)).T
        return [_one_hot(c, int(n)) for c, n in zip(columns, np.ravel(space.nvec), strict=True)]
    return [rows]


def _one_hot(index: np.ndarray, size: int) -> np.ndarray:
    if ((index < 0) | (index >= size)).any():
        raise ValueError(f"a value of a discrete observation is outside its {size} choices")
    return np.eye(size, dtype=np.float32)[index.astype(np.int64)]


def _unreadable(folder: Path, error: BaseException) -> UserError:
    return UserError(
        f"demonstrations {folder} cannot be read as a Minari dataset: {one_line(error)}"
    )
