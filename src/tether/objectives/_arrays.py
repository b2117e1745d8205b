"""What the equations need to know about arrays: whose they are, where they count, how they meet."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

from array_api_compat import array_namespace, is_jax_array

Array: TypeAlias = Any
"""A NumPy, JAX (concrete or traced) or PyTorch array."""

Scalar: TypeAlias = Any
"""A Python number, or an array of no axes."""


def namespace(*arrays: Array) -> Any:
    """The array-API namespace of the arrays; NumPy's where all of them are Python numbers.

    Raises:
        TypeError: When something is no array, or arrays of two libraries meet.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling():
        # The search by class is cached in ways the compiler warns about line by line; inside a
        # compiled graph there is only one answer.
        import array_api_compat.torch as compiled

        return compiled
    if all(isinstance(array, bool | int | float) for array in arrays):
        import array_api_compat.numpy as plain

        return plain
    try:
        return array_namespace(*arrays)
    except TypeError as error:
        kinds = ", ".join(sorted({f"{type(a).__module__}.{type(a).__name__}" for a in arrays}))
        raise TypeError(
            f"cannot compute with {kinds} together: give NumPy, JAX or PyTorch arrays, "
            "all of one library (convert with np.asarray, jnp.asarray or torch.as_tensor)"
        ) from error


def detach(array: Array) -> Array:
    """The same numbers, through which no gradient flows."""
    if hasattr(array, "detach"):
        return array.detach()
    if is_jax_array(array):
        import jax

        return jax.lax.stop_gradient(array)
    return array


def same_rank(**arrays: Array) -> None:
    """Refuse arrays of different numbers of axes, whose product would silently grow.

    Raises:
        ValueError: For instance when (N,) meets (N, 1), which NumPy would spread out to (N, N).
    """
    shapes = {
        name: tuple(array.shape) for name, array in arrays.items() if getattr(array, "ndim", 0)
    }
    if len({len(shape) for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"arrays with different numbers of axes meet ({listed}): reshape them to the same "
            "number, with length 1 where one value is meant for many"
        )


def as_bool(xp: Any, flags: Array) -> Array:
    """Flags as booleans, also when they come as 0 and 1."""
    return flags if flags.dtype == xp.bool else flags != 0


def keep(xp: Any, mask: Array | None, array: Array, otherwise: float = 0.0) -> Array:
    """The array where the mask is true and a harmless constant elsewhere.

    Applied to what goes INTO an equation: a NaN that is only cut from the result still comes back
    through the derivative, as 0 * NaN.
    """
    if mask is None or not hasattr(array, "ndim"):
        return array
    return xp.where(as_bool(xp, mask), array, otherwise)


def log_sigmoid(xp: Any, x: Array) -> Array:
    """log(1 / (1 + exp(-x))), without overflow at either end."""
    return -xp.logaddexp(xp.zeros_like(x), -x)
