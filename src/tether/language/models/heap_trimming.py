"""Holes in the heap, given back to the system while a large model learns on a CPU.

PyTorch asks glibc for aligned memory, and an aligned array rarely fits into the place of one of its
own size that was given up. So activations and gradients leave holes behind, a tenth of all memory
with a model of 135 M parameters. They are given back half-way through the layers and at their end,
on the way forward and on the way back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn

LEAST_BYTES: Final = 256 * 2**20
"""Of smaller models the holes are not worth the time it takes to look for them."""


def give_back_holes(backbone: nn.Module, embedding: nn.Module) -> bool:
    """Has a model give back unused memory on its way forward and back.

    Costs a few hundredths of a step's time, since the pages are asked for again; changes no number.

    Args:
        backbone: the model without its head.
        embedding: the backbone's first layer, whose gradient is its last.

    Returns:
        Whether there is anything to give back: parameters of some size, on a CPU, under glibc.
    """
    parameters = list(backbone.parameters())
    if sum(p.numel() * p.element_size() for p in parameters) < LEAST_BYTES:
        return False
    trim = _trim()
    if trim is None or any(p.device.type != "cpu" for p in parameters):
        return False

    def here(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        if torch.is_grad_enabled():
            trim(0)

    def back_here(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(back)  # type: ignore[no-untyped-call]

    def back(_: Tensor) -> None:
        trim(0)

    for module, hook in (
        *((middle, hook) for middle in _middle(backbone) for hook in (here, back_here)),
        (backbone, here),
        (embedding, back_here),
    ):
        module.register_forward_hook(hook)
    return True


def _middle(backbone: nn.Module) -> list[nn.Module]:
    """The layer half-way through, if the layers are known."""
    stacks = [module for module in backbone.children() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    return [layers[len(layers) // 2]] if len(layers) else []


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
    return trim
