"""Parameters, optimizers and generators of PyTorch as states of a checkpoint, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tether.errors import RunError
from tether.learning.learner import State

_BFLOAT16: Final = "bfloat16"


def parameters_to_state(module: nn.Module) -> State:
    """Copies of the parameters that learn: the adapter's where one was put on, else all.

    Of a module in which nothing learns, all parameters. Tied parameters come once.

    Returns:
        Arrays by parameter name; bfloat16 as its bits, ``{"bfloat16": uint16 array}``.
    """
    return {name: tensor_to_state(p) for name, p in _learning(module).items()}


def load_parameters(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Puts parameters back in place; the inverse of :func:`parameters_to_state`.

    Raises:
        RunError: the module has other parameters than those that were saved.
    """
    own = _learning(module)
    if own.keys() != state.keys():
        stray = sorted(own.keys() ^ state.keys())[0]
        where = "the model" if stray in own else "the checkpoint"
        raise RunError(
            f"only {where} has the parameter {stray!r}; build the model as the run did (model, "
            "LoRA settings)"
        )
    tensors = {name: state_to_tensor(state[name]) for name in own}
    for name, parameter in own.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise RunError(
                f"parameter {name!r} is {_kind(parameter)} in the model and {_kind(tensor)} in the "
                "checkpoint; build the model as the run did (model, dtype, LoRA settings)"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def parameters_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bits, wherever the parameters are."""
    seal = hashlib.sha256()
    for name, parameter in parameters:
        seal.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        seal.update(flat.view(torch.uint8).numpy().data)
    return seal.hexdigest()


def optimizer_to_state(optimizer: torch.optim.Optimizer) -> State:
    """Moments, step counts and settings of any torch optimizer, copied."""
    saved = optimizer.state_dict()
    return {
        "state": {
            str(index): {name: _leaf(value) for name, value in values.items()}
            for index, values in saved["state"].items()
        },
        "param_groups": [
            {name: _leaf(value) for name, value in group.items()} for group in saved["param_groups"]
        ],
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The inverse of :func:`optimizer_to_state`, for an optimizer built in the same way.

    Raises:
        RunError: it was built over other parameters.
    """
    current = optimizer.state_dict()["param_groups"]
    groups = state["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(group["params"]) for group in current]:
        raise RunError(
            "the checkpoint's optimizer has other parameters than this one; build the model as the "
            "run did (model, LoRA settings)"
        )
    optimizer.load_state_dict(
        {
            "state": {
                int(index): {name: _value(value) for name, value in values.items()}
                for index, values in state["state"].items()
            },
            "param_groups": [
                {name: _like(value, own.get(name)) for name, value in group.items()}
                for group, own in zip(groups, current, strict=True)
            ],
        }
    )


def generator_to_state(generator: torch.Generator) -> NDArray[np.uint8]:
    """Where a torch generator stands."""
    return cast("NDArray[np.uint8]", generator.get_state().numpy().copy())


def load_generator(generator: torch.Generator, state: Any) -> None:
    """The inverse of :func:`generator_to_state`."""
    generator.set_state(torch.from_numpy(np.array(state, np.uint8)))


def tensor_to_state(tensor: Tensor) -> Any:
    """A copy as an array; bfloat16, which NumPy lacks, as ``{"bfloat16": uint16 array}``."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return {_BFLOAT16: tensor.view(torch.uint16).numpy().copy()}
    return tensor.numpy().copy()


def state_to_tensor(state: Any) -> Tensor:
    """The inverse of :func:`tensor_to_state`; shares no memory with `state`."""
    if isinstance(state, Mapping):
        return torch.from_numpy(np.array(state[_BFLOAT16])).view(torch.bfloat16)
    return torch.from_numpy(np.array(state))


def _learning(module: nn.Module) -> dict[str, nn.Parameter]:
    every = dict(module.named_parameters())
    return {name: p for name, p in every.items() if p.requires_grad} or every


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tensor_to_state(value)
    return list(value) if isinstance(value, tuple) else value


def _value(value: Any) -> Any:
    return state_to_tensor(value) if isinstance(value, np.ndarray | np.generic | dict) else value


def _like(value: Any, own: Any) -> Any:
    """A setting of a parameter group in the type the optimizer uses (a tuple of betas)."""
    if isinstance(own, tuple) and isinstance(value, list):
        return tuple(value)
    return _value(value)
