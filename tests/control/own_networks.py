"""Networks of a user's own, good and bad."""

from typing import Any

import numpy as np


class Residual:
    """Works on NumPy's and JAX's arrays alike, so it acts in NumPy."""

    def init(self, rng: Any, observation_shape: Any, outputs: int, output_gain: float) -> Any:
        width = int(np.prod(observation_shape))
        return {
            "inner": (rng.standard_normal((width, width)) / width**0.5).astype("float32"),
            "outer": (output_gain * rng.standard_normal((width, outputs))).astype("float32"),
        }

    def apply(self, parameters: Any, observation: Any) -> Any:
        x = observation.reshape(len(observation), -1).astype("float32")
        return (x + abs(x @ parameters["inner"])) @ parameters["outer"]


class JaxOnly(Residual):
    """Answers NumPy arrays with JAX's."""

    def apply(self, parameters: Any, observation: Any) -> Any:
        from jax import numpy as jnp

        return jnp.asarray(super().apply(parameters, observation))


class Flat(Residual):
    def apply(self, parameters: Any, observation: Any) -> Any:
        return super().apply(parameters, observation)[:, 0]


class Endless(Residual):
    def apply(self, parameters: Any, observation: Any) -> Any:
        return super().apply(parameters, observation) * float("inf")


class NumpyOnly(Residual):
    def apply(self, parameters: Any, observation: Any) -> Any:
        return np.asarray(super().apply(parameters, observation))


class Failing(Residual):
    def init(self, rng: Any, observation_shape: Any, outputs: int, output_gain: float) -> Any:
        raise KeyError("no such width")


class Integers(Residual):
    def init(self, rng: Any, observation_shape: Any, outputs: int, output_gain: float) -> Any:
        return [np.zeros((int(np.prod(observation_shape)), outputs), np.int64)]


class Nothing:
    def apply(self, parameters: Any, observation: Any) -> Any:
        return observation


wide = Residual()
