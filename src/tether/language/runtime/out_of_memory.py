"""Running out of memory, reported with the settings that help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from tether.errors import UserError

# What PyTorch's allocators say, on the CPU and on devices that have no error of their own.
_COMPLAINTS: Final = ("can't allocate memory", "out of memory", "not enough memory")


@contextmanager
def explaining_out_of_memory(config: Any, where: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory inside into one line that names what to lower.

    Args:
        config: a method's settings, whose batch sizes are named with their values.
        where: says when it happened, such as ``"at step 64"``.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory {where()}; {_remedy(config)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(c in str(error).lower() for c in _COMPLAINTS)


def _remedy(config: Any) -> str:
    sizes = {
        name: getattr(config, name, 1) for name in ("micro_batch_size", "generation_batch_size")
    }
    harmless = [f"{name} ({size})" for name, size in sizes.items() if size > 1]
    others = "shorten texts with max_length, or try dtype bfloat16 or lora 16"
    if not harmless:
        return others
    return f"lower {' or '.join(harmless)}, which changes no result; or {others}"
