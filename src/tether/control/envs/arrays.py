"""What a policy sees and does: which spaces are supported, and how observations become arrays.

An environment's own (source) observation space may be nested: a Dict of a Discrete and a Box, say.
A policy sees one array: an image, or a flat vector in the order of
:func:`gymnasium.spaces.flatten`. The environments and a policy deployed without any environment
share the two functions here, so that both see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tether.errors import BadEnvironmentError

Array = NDArray[Any]
Space = gymnasium.Space[Any]

SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"
SUPPORTED_ACTIONS = "Box of floats, Discrete, MultiDiscrete and MultiBinary"

# A one-hot or flat vector beyond this is a mistake, not an input layer.
MAX_ELEMENTS = 2**24


def is_image(space: Space) -> bool:
    """Whether a source space is kept as an image: a uint8 Box of shape (H, W, C) or (H, W)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def policy_space(source_space: Space) -> spaces.Box:
    """The space of what the policy sees of a source observation space.

    Images, that is uint8 Boxes of shape (H, W, C) or (H, W), stay uint8 images (H, W, C), the
    latter with C = 1. Everything else becomes one vector (D,) in the order of
    :func:`gymnasium.spaces.flatten`: a Discrete or MultiDiscrete as one-hot, a Dict or Tuple part
    after part. The vector is float64 where a part needs it (float64 or wide integers), otherwise
    float32.

    Args:
        source_space: the environment's own observation space.

    Returns:
        A Box of shape (H, W, C) and dtype uint8, or of shape (D,) and dtype float32 or float64.

    Raises:
        BadEnvironmentError: a part of the space is not supported; the message names it.
    """
    elements = _count(source_space, "the observation space")
    if elements == 0:
        raise BadEnvironmentError(f"the observation space {source_space} holds no numbers")
    if isinstance(source_space, spaces.Box) and is_image(source_space):
        height, width, *channels = source_space.shape
        shape = (height, width, *(channels or [1]))
        low, high = source_space.low.reshape(shape), source_space.high.reshape(shape)
        return spaces.Box(low, high, shape, np.uint8)
    flat = spaces.flatten_space(source_space)
    assert isinstance(flat, spaces.Box)
    dtype = np.float64 if _needs_float64(source_space) else np.float32
    return spaces.Box(flat.low.astype(dtype), flat.high.astype(dtype), flat.shape, dtype)


def flatten_observation(source_space: Space, observation: Any) -> Array:
    """One observation of a source space as the array its :func:`policy_space` describes.

    Args:
        source_space: the environment's own observation space.
        observation: one observation of it, not a batch.

    Returns:
        A new array of the shape and dtype of ``policy_space(source_space)``.

    Raises:
        BadEnvironmentError: the observation does not have the shape, dtype or keys that the space
            promises; the message names the part, what came and what was promised.
    """
    problem = observation_problem(source_space, observation)
    if problem is not None:
        raise BadEnvironmentError(problem)
    return _flatten(source_space, policy_space(source_space), observation)


def observation_writer(source_space: Space) -> Callable[[Array, Any], str | None]:
    """A function that writes one observation into a row of a batch, checking it on the way.

    It does what :func:`flatten_observation` does at a fraction of the cost: the common cases, an
    array that is exactly what its Box promises and the integer of a Discrete, are short.

    Args:
        source_space: the environment's own observation space.

    Returns:
        ``write(row, observation)``: fills ``row`` of ``policy_space(source_space)`` and returns
        None, or leaves it alone and returns what is wrong, as :func:`observation_problem`.
    """
    target = policy_space(source_space)
    shape, dtype, target_shape = source_space.shape, source_space.dtype, target.shape
    start = int(source_space.start) if isinstance(source_space, spaces.Discrete) else 0

    def write_any(row: Array, observation: Any) -> str | None:
        problem = observation_problem(source_space, observation)
        if problem is None:
            row[...] = _flatten(source_space, target, observation)
        return problem

    def write_box(row: Array, observation: Any) -> str | None:
        if (
            type(observation) is np.ndarray
            and observation.shape == shape
            and observation.dtype == dtype
        ):
            row[...] = observation if shape == target_shape else observation.reshape(target_shape)
            return None
        return write_any(row, observation)

    def write_discrete(row: Array, observation: Any) -> str | None:
        if not isinstance(observation, int | np.integer):
            return write_any(row, observation)
        index = int(observation) - start
        if not 0 <= index < len(row):
            return _leaf_problem(source_space, observation, "the observation")
        row.fill(0)
        row[index] = 1
        return None

    if isinstance(source_space, spaces.Box):
        return write_box
    return write_discrete if isinstance(source_space, spaces.Discrete) else write_any


def _flatten(source_space: Space, target: spaces.Box, observation: Any) -> Array:
    if isinstance(source_space, spaces.Box):
        return np.array(observation, target.dtype).reshape(target.shape)
    return np.asarray(spaces.flatten(source_space, observation)).astype(target.dtype)


def observation_problem(space: Space, value: Any, name: str = "the observation") -> str | None:
    """What is wrong with an observation, in one line, or None when it fits its space.

    Shapes, keys and kinds of numbers are checked. Bounds of a Box are not (many environments
    exceed them a little), nor is NaN. A float64 for a promised float32 passes: the same kind of
    number at another precision.

    Args:
        space: the source space.
        value: one observation of it.
        name: how the message calls the value.

    Returns:
        The problem, naming what came and what was promised, or None.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or set(value) != set(space.spaces):
            came = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
            return f"{name} came as {came}, its space promises keys {sorted(map(str, space))}"
        parts = [(part, value[key], f"{name}[{key!r}]") for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            came = (
                f"{len(value)} parts" if isinstance(value, tuple | list) else type(value).__name__
            )
            return f"{name} came as {came}, its space promises a tuple of {len(space.spaces)}"
        pairs = zip(space.spaces, value, strict=True)
        parts = [(part, item, f"{name}[{index}]") for index, (part, item) in enumerate(pairs)]
    else:
        return _leaf_problem(space, value, name)
    return next((p for part in parts if (p := observation_problem(*part)) is not None), None)


def check_action_space(space: Space) -> None:
    """Raise unless policies can act in this space.

    Args:
        space: the action space of one environment.

    Raises:
        BadEnvironmentError: the space is not a float Box, Discrete, MultiDiscrete or MultiBinary.
    """
    fits = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    if isinstance(space, spaces.Box):
        fits = np.issubdtype(space.dtype, np.floating)
    if not fits:
        hint = "; for integers use MultiDiscrete" if isinstance(space, spaces.Box) else ""
        raise BadEnvironmentError(
            f"the action space {space} is not supported: {SUPPORTED_ACTIONS} are{hint}"
        )


def action_batch(action: Any, space: Space, num_envs: int) -> Array:
    """The actions of all environments as an array of the action space's dtype.

    Args:
        action: (num_envs, *action_shape), elements of the action space.
        space: the action space of one environment.
        num_envs: how many environments act.

    Returns:
        The array, without a copy where it already has the dtype.

    Raises:
        BadEnvironmentError: the shape is wrong, or the kind of number (floats for a Discrete).
    """
    array = np.asarray(action)
    shape = (num_envs, *(space.shape or ()))
    if array.dtype == space.dtype and array.shape == shape:
        return array
    assert space.dtype is not None
    if array.shape != shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise BadEnvironmentError(
            f"actions came as {array.dtype} of shape {array.shape}; {num_envs} environments with "
            f"action space {space} need {space.dtype} of shape {shape}"
        )
    return array.astype(space.dtype, copy=False)


def _leaf_problem(space: Space, value: Any, name: str) -> str | None:
    try:
        array = np.asarray(value)
    except ValueError:  # ragged lists
        return f"{name} came as {type(value).__name__} that is no array, its space is {space}"
    if array.shape != space.shape:
        return f"{name} came with shape {array.shape}, its space promises {space.shape}"
    if isinstance(space, spaces.Box):
        if not np.can_cast(array.dtype, space.dtype, "same_kind"):
            return f"{name} came with dtype {array.dtype}, its space promises {space.dtype}"
        return None
    if array.dtype.kind not in "iub":
        return f"{name} came with dtype {array.dtype}, its space {space} promises integers"
    low: Any = 0
    high: Any = 1
    if isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    if np.any(array < low) or np.any(array > high):
        return f"{name} came as {value}, outside its space {space}"
    return None


def _count(space: Space, name: str) -> int:
    """Numbers in the flat vector of a space; raises for spaces that have none."""
    if isinstance(space, spaces.Dict):
        count = sum(_count(part, f"{name}[{key!r}]") for key, part in space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        count = sum(_count(part, f"{name}[{i}]") for i, part in enumerate(space.spaces))
    elif isinstance(space, spaces.Discrete):
        count = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        count = int(np.sum(space.nvec))
    elif isinstance(space, spaces.Box | spaces.MultiBinary):
        count = int(np.prod(space.shape))
    else:
        raise BadEnvironmentError(f"{name} {space} is not supported: {SUPPORTED_OBSERVATIONS} are")
    if count > MAX_ELEMENTS:
        raise BadEnvironmentError(
            f"{name} {space} flattens to {count} numbers; at most {MAX_ELEMENTS} are supported"
        )
    return count


def _needs_float64(space: Space) -> bool:
    """Whether float32 would round what a space holds; one-hot vectors never need more."""
    if isinstance(space, spaces.Dict):
        return any(_needs_float64(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return any(_needs_float64(part) for part in space.spaces)
    return isinstance(space, spaces.Box) and not np.can_cast(space.dtype, np.float32, "safe")
