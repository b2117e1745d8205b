"""Where JAX computes for control: always on the CPU, whatever device the process prefers.

Batches of a few dozen rows through 64-unit layers would only wait on a GPU. A program that uses
tether as a library keeps its own JAX settings, so nothing here changes them: each compiled function
asks for the CPU as long as it runs. JAX itself is loaded when it is first needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


@functools.cache
def cpu() -> Any:
    """JAX's first CPU device."""
    import jax

    return jax.devices("cpu")[0]


def on_cpu() -> Any:
    """A context in which JAX places new arrays, and what it computes from NumPy's, on the CPU."""
    import jax

    return jax.default_device(cpu())


def jit(function: Callable[..., T]) -> Callable[..., T]:
    """`jax.jit` for a function that is to run on the CPU."""
    import jax

    compiled, place = jax.jit(function), jax.default_device

    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        with place(cpu()):
            result: T = compiled(*arguments)
        return result

    return call
