"""One small backend to each array library, so that a test of an equation is written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace


# A function that is asked twice, even by two tests, is compiled once.
@cache
def _jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function)


@cache
def _with_slopes(function: Callable[..., Any], argnums: tuple[int, ...]) -> Callable[..., Any]:
    def weighed(*xs: Any) -> tuple[Any, Any]:
        result = function(*xs)
        return _weighed(result), result

    return jax.value_and_grad(weighed, argnums=argnums, has_aux=True)


def _weighed(result: Any) -> Any:
    """A scalar that depends on every element of a result, differently on each; scalars stay."""
    if not result.ndim:
        return result
    xp = array_namespace(result)
    size = int(np.prod(result.shape))
    weights = xp.reshape(xp.asarray(np.arange(1, size + 1) / 10, dtype=result.dtype), result.shape)
    return xp.sum(result * weights)


@dataclass(frozen=True)
class Backend:
    """An array library and a way of running it; `precision` is the dtype of its floats."""

    name: str
    precision: str = "float64"

    def array(self, values: Any) -> Any:
        values = np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(self.precision)
        if self.name == "torch":
            return torch.as_tensor(values)
        return values if self.name == "numpy" else jnp.asarray(values)

    def _run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return _jitted(function) if self.name == "jax-jit" else function

    def raw(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """What the function returns for these inputs, as the library's own array."""
        return self._run(function)(*map(self.array, inputs))

    def value(self, function: Callable[..., Any], *inputs: Any) -> np.ndarray:
        """What the function returns for these inputs, as a NumPy array."""
        return np.asarray(self.raw(function, *inputs))

    def outcome(self, function: Callable[..., Any], *inputs: Any) -> tuple[np.ndarray, list[Any]]:
        """The result, and the derivatives of its scalar (see `_weighed`) by every input of floats.

        NumPy, which has no derivatives of its own, answers with central differences.
        """
        floats = [i for i, values in enumerate(inputs) if np.asarray(values).dtype.kind == "f"]
        if self.name == "numpy":
            return np.asarray(function(*inputs)), [
                _differences(function, inputs, i) for i in floats
            ]
        arrays = [self.array(values) for values in inputs]
        if self.name == "torch":
            for i in floats:
                arrays[i].requires_grad_()
            result = function(*arrays)
            slopes = torch.autograd.grad(
                _weighed(result), [arrays[i] for i in floats], materialize_grads=True
            )
            return result.detach().numpy(), [slope.numpy() for slope in slopes]
        (_, result), slopes = self._run(_with_slopes(function, tuple(floats)))(*arrays)
        return np.asarray(result), [np.asarray(slope) for slope in slopes]

    def gradient(self, function: Callable[..., Any], *inputs: Any) -> list[np.ndarray]:
        """Derivatives of a scalar function with respect to every input of floats."""
        return self.outcome(function, *inputs)[1]


def _differences(function: Callable[..., Any], inputs: tuple[Any, ...], which: int) -> np.ndarray:
    x = inputs[which]
    slope = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        held, ends = x[i], []
        for shift in (1e-6, -1e-6):
            x[i] = held + shift
            ends.append(_weighed(np.asarray(function(*inputs))))
        x[i] = held
        slope[i] = (ends[0] - ends[1]) / 2e-6
    return slope


def _opened(backend: Backend) -> Iterator[Backend]:
    wide = backend.precision == "float64" and backend.name.startswith("jax")
    with jax.enable_x64(True) if wide else nullcontext():
        yield backend


@pytest.fixture(params=["numpy", "jax", "jax-jit", "torch"])
def library(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every library in float64, and JAX also operation by operation, which is slow."""
    yield from _opened(Backend(request.param))


@pytest.fixture(params=["numpy", "jax-jit", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every library in float64, for values."""
    yield from _opened(Backend(request.param))


@pytest.fixture(params=["jax-jit", "torch"])
def autodiff(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Both libraries that differentiate, in float64."""
    yield from _opened(Backend(request.param))


@pytest.fixture(params=["numpy", "jax-jit", "torch"])
def single(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every library in float32."""
    yield from _opened(Backend(request.param, "float32"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test alone, not on which tests ran before it."""
    return np.random.default_rng(list(request.function.__name__.encode()))
