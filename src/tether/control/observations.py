"""Telling one observation from a batch, for policies that are asked by people's own programs."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from tether.control.envs.arrays import Array, Space, flatten_observation, observation_problem
from tether.errors import UserError


def flat_observations(source_space: Space, observation: Any) -> tuple[Array, bool]:
    """Observations as a policy's network sees them, and whether they came as a batch.

    Args:
        source_space: the environment's own observation space.
        observation: one observation of that space, or a batch: arrays or lists with a further first
            axis (in every part of a Dict or Tuple), or a list of observations.

    Returns:
        (B, *obs), and True; or (1, *obs) and False for one observation.

    Raises:
        UserError: it is neither, or holds NaN or infinity; the message says where.
    """
    observation = _typed(source_space, observation)
    problem = observation_problem(source_space, observation)
    batched = problem is not None
    rows = [observation]
    if batched:
        found = _rows(source_space, observation)
        if found is None:
            raise UserError(
                f"{problem}; pass one observation of that space, or a batch of them along a first "
                "axis"
            )
        rows = found
    for index, row in enumerate(rows if batched else ()):
        wrong = observation_problem(source_space, row, f"observation {index} of the batch")
        if wrong is not None:
            raise UserError(wrong)
    flat = np.stack([flatten_observation(source_space, row) for row in rows])
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        place = [int(i) for i in np.argwhere(~np.isfinite(flat))[0]]
        nested = isinstance(source_space, spaces.Dict | spaces.Tuple)
        raise UserError(
            f"the observation holds {flat[tuple(place)]} at index {place if batched else place[1:]}"
            f"{' of its flattened form' * nested}; expected finite numbers"
        )
    return flat, batched


def _typed(space: Space, observation: Any) -> Any:
    """Lists of whole numbers, which have no dtype of their own, in that of an integer Box."""
    if isinstance(space, spaces.Box) and space.dtype.kind in "iu" and isinstance(observation, list):
        try:
            array = np.asarray(observation)
        except ValueError:  # ragged lists
            return observation
        limits = np.iinfo(space.dtype)
        if (
            array.dtype.kind in "iu"
            and array.size
            and limits.min <= array.min() <= array.max() <= limits.max
        ):
            return array.astype(space.dtype)
    return observation


def _rows(space: Space, batch: Any) -> list[Any] | None:
    """The observations of a batch, or None where it cannot be one."""
    if isinstance(space, spaces.Dict) and isinstance(batch, dict):
        if set(batch) != set(space.spaces):
            return None
        parts = [_rows(part, batch[key]) for key, part in space.spaces.items()]
        return _joined(parts, lambda row: dict(zip(space.spaces, row, strict=True)))
    if isinstance(space, spaces.Tuple) and isinstance(batch, tuple):
        if len(batch) != len(space.spaces):
            return None
        parts = [_rows(part, item) for part, item in zip(space.spaces, batch, strict=True)]
        return _joined(parts, tuple)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return list(batch) if isinstance(batch, list | tuple) and batch else None
    try:
        array = np.asarray(batch)
    except ValueError:  # ragged lists
        return None
    shape = space.shape or ()
    if array.ndim != len(shape) + 1 or not len(array) or array.dtype.kind not in "fiub":
        return None
    return list(array)


def _joined(parts: list[list[Any] | None], join: Any) -> list[Any] | None:
    lengths = {None if part is None else len(part) for part in parts}
    if None in lengths or len(lengths) != 1:
        return None
    return [join(row) for row in zip(*parts, strict=True)]
