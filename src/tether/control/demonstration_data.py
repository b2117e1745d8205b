"""Demonstrations as arrays, whichever format they were kept in, and what is checked of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from tether.control.envs.spaces_json import space_in_words
from tether.errors import UserError


class Demonstrations(NamedTuple):
    """State-action pairs of whole episodes, one after another, checked against an environment.

    Attributes:
        observation: (M, *obs), flat, raw, finite.
        action: (M, *act), as a policy stores actions: see :class:`ActionHead`.
        length: (E,) int64, at least 1 each, M in all.
    """

    observation: np.ndarray
    action: np.ndarray
    length: np.ndarray


def check_spaces(
    path: Path,
    theirs: tuple[gym.Space[Any], gym.Space[Any]],
    ours: tuple[gym.Space[Any], gym.Space[Any]],
) -> None:
    """Raise unless demonstrations are of the environment's observation and action space.

    Precision (float32 against float64) and the bounds of observations may differ: they change no
    number. The bounds of actions may not, for they are the action's unit.

    Raises:
        UserError: names the space that differs.
    """
    names = ("observation space", "action space")
    for name, their, our in zip(names, theirs, ours, strict=True):
        if not _alike(their, our, bounds=name == "action space"):
            raise UserError(
                f"demonstrations {path} have the {name} {space_in_words(their)}, the environment "
                f"{space_in_words(our)}; give demonstrations of this environment"
            )


def ragged_from(folder: Path, length: np.ndarray, **arrays: np.ndarray) -> None:
    """Raise unless every array has as many rows as the episodes have steps.

    Raises:
        UserError: names the array and both numbers.
    """
    if length.ndim != 1 or length.dtype.kind not in "iu":
        raise UserError(
            f"demonstrations {folder}: length must be integers (E,), got {length.dtype}"
        )
    steps = int(length.sum())
    for name, array in arrays.items():
        rows = len(array) if array.ndim else 0
        if rows != steps:
            raise UserError(
                f"demonstrations {folder} are ragged: {rows} rows of {name} for {steps} steps"
            )


def place_of(row: int, length: np.ndarray) -> str:
    """Where a row is, as errors name it: pair and episode, counted from 1."""
    ends = np.cumsum(length)
    episode = int(np.searchsorted(ends, row, side="right"))
    return f"{row - int(ends[episode] - length[episode])} of episode {episode}"


def _alike(theirs: gym.Space[Any], ours: gym.Space[Any], *, bounds: bool) -> bool:
    spaces = gym.spaces
    if isinstance(ours, spaces.Box):
        if not isinstance(theirs, spaces.Box) or theirs.shape != ours.shape:
            return False
        # An image and a vector of the same shape are not the same thing to look at.
        if (theirs.dtype == np.uint8) != (ours.dtype == np.uint8):
            return False
        same = (np.allclose(a, b) for a, b in ((theirs.low, ours.low), (theirs.high, ours.high)))
        return not bounds or all(same)
    if isinstance(ours, spaces.Discrete):
        return isinstance(theirs, spaces.Discrete) and (theirs.n, theirs.start) == (
            ours.n,
            ours.start,
        )
    if isinstance(ours, spaces.MultiDiscrete):
        return (
            isinstance(theirs, spaces.MultiDiscrete)
            and np.array_equal(theirs.nvec, ours.nvec)
            and np.array_equal(theirs.start, ours.start)
        )
    if isinstance(ours, spaces.MultiBinary):
        return isinstance(theirs, spaces.MultiBinary) and theirs.shape == ours.shape
    if isinstance(ours, spaces.Dict):
        return (
            isinstance(theirs, spaces.Dict)
            and set(theirs.spaces) == set(ours.spaces)
            and all(_alike(theirs[key], part, bounds=bounds) for key, part in ours.items())
        )
    if isinstance(ours, spaces.Tuple):
        return (
            isinstance(theirs, spaces.Tuple)
            and len(theirs.spaces) == len(ours.spaces)
            and all(
                _alike(a, b, bounds=bounds) for a, b in zip(theirs.spaces, ours.spaces, strict=True)
            )
        )
    return False


def one_line(error: BaseException) -> str:
    """What another library said, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
