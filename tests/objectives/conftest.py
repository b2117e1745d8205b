"""One small door to each array library, so that a test of an equation is written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch


# A test that calls one function twice should pay for one compilation.
@lru_cache(maxsize=16)
def _jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function)


@lru_cache(maxsize=16)
def _slope(function: Callable[..., Any], argnums: tuple[int, ...]) -> Callable[..., Any]:
    return jax.grad(function, argnums=argnums)


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

    def gradient(self, function: Callable[..., Any], *inputs: Any) -> list[np.ndarray]:
        """Derivatives of a scalar function with respect to every input of floats."""
        arrays = [self.array(values) for values in inputs]
        floats = [i for i, values in enumerate(inputs) if np.asarray(values).dtype.kind == "f"]
        if self.name == "torch":
            for i in floats:
                arrays[i].requires_grad_()
            found = torch.autograd.grad(
                function(*arrays), [arrays[i] for i in floats], materialize_grads=True
            )
        else:
            found = self._run(_slope(function, tuple(floats)))(*arrays)
        return [np.asarray(each) for each in found]


def _opened(backend: Backend) -> Iterator[Backend]:
    wide = backend.precision == "float64" and backend.name.startswith("jax")
    with jax.enable_x64(True) if wide else nullcontext():
        yield backend


@pytest.fixture(params=["numpy", "jax", "jax-jit", "torch"])
def every_way(request: pytest.FixtureRequest) -> Iterator[Backend]:
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
