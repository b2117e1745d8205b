"""A policy: network, action distribution and the normalization it was trained under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from tether.control.distributions import ActionHead, Distribution, action_head
from tether.control.envs.spaces import flatten_observation, policy_space
from tether.control.envs.spaces_json import space_from_json, space_to_json
from tether.control.networks import Layer, Network, forward, init_network
from tether.control.normalization import ObservationNormalizer
from tether.errors import UserError

Array = Any


class PolicyParameters(NamedTuple):
    """What learning moves: the network and, for Box actions, log standard deviations (A,)."""

    network: Network
    log_std: Array


class PolicySpec(NamedTuple):
    """What a policy maps from and to: enough to rebuild it without its environment."""

    source_space: gym.Space[Any]
    observation_space: gym.spaces.Box
    head: ActionHead
    hidden: tuple[int, ...]
    normalize: bool

    @classmethod
    def of(
        cls,
        source_space: gym.Space[Any],
        action_space: gym.Space[Any],
        hidden: tuple[int, ...],
        normalize: bool,
    ) -> PolicySpec:
        """The spec for an environment's own spaces; images are never normalized."""
        space = policy_space(source_space)
        vector = len(space.shape) == 1
        return cls(source_space, space, action_head(action_space), hidden, normalize and vector)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-able values."""
        return {
            "observation_space": space_to_json(self.source_space),
            "action_space": space_to_json(self.head.space),
            "hidden": list(self.hidden),
            "normalize": self.normalize,
        }

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> PolicySpec:
        """Undo :meth:`to_json`."""
        return cls.of(
            space_from_json(spec["observation_space"]),
            space_from_json(spec["action_space"]),
            tuple(int(width) for width in spec["hidden"]),
            bool(spec["normalize"]),
        )

    def init(self, rng: np.random.Generator, log_std: float) -> PolicyParameters:
        """Fresh parameters; `log_std` is the initial log standard deviation of every Box action."""
        network = init_network(
            rng, self.observation_space.shape, self.hidden, self.head.outputs, output_gain=0.01
        )
        return PolicyParameters(network, np.full(self.head.scales, log_std, np.float32))

    def distribution(self, parameters: PolicyParameters, observation: Array) -> Distribution:
        """pi(.|s) for a batch of normalized observations, in NumPy or JAX."""
        return self.head.distribution(forward(parameters.network, observation), parameters.log_std)


class Policy:
    """A policy ready to act.

    `predict` follows the convention of Stable-Baselines3: one observation in, one action out, or
    a batch in and a batch out.
    """

    def __init__(
        self,
        spec: PolicySpec,
        parameters: PolicyParameters,
        normalizer: ObservationNormalizer | None,
    ) -> None:
        self.spec = spec
        self.normalizer = normalizer
        self.parameters = parameters

    @property
    def parameters(self) -> PolicyParameters:
        """The parameters as NumPy arrays; assign NumPy or JAX arrays."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: PolicyParameters) -> None:
        self._parameters = numpy_parameters(parameters)
        if self._parameters.network.convolutions and not hasattr(self, "_image_outputs"):
            import jax

            self._image_outputs: Callable[..., Any] = jax.jit(forward)

    def distribution(self, observation: np.ndarray) -> Distribution:
        """pi(.|s) for a batch of normalized observations, NumPy in and out."""
        network, log_std = self._parameters
        if network.convolutions:
            outputs = np.asarray(self._image_outputs(network, observation))
        else:
            outputs = forward(network, observation)
        return self.spec.head.distribution(outputs, log_std)

    def normalize(self, observation: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Flattened observations (B, ...) as the network takes them."""
        if self.normalizer is not None:
            return self.normalizer(observation, out)
        if len(self.spec.observation_space.shape) == 3:
            return observation
        return np.asarray(observation, np.float32)

    def predict(
        self,
        observation: Any,
        *,
        deterministic: bool = True,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The action for `observation`.

        Args:
            observation: one observation of the environment's own space (dictionaries too), or a
                batch of them stacked along a first axis (arrays only).
            deterministic: the most probable action; else a sample.
            rng: source of the sample's noise; required when not deterministic.

        Returns:
            One action of the action space, or a batch of them.

        Raises:
            UserError: the observation's shape fits neither one observation nor a batch.
        """
        source, space = self.spec.source_space, self.spec.observation_space
        batched = (
            isinstance(observation, np.ndarray)
            and source.shape is not None
            and observation.ndim == len(source.shape) + 1
        )
        rows = observation if batched else [observation]
        try:
            flat = np.stack([flatten_observation(source, row) for row in rows])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"observation does not fit {source}: {error}; pass one observation of that space "
                "or a batch stacked along a first axis"
            ) from None
        if flat.shape[1:] != space.shape:
            raise UserError(
                f"observation has shape {np.shape(observation)}; expected {source.shape} or "
                f"(batch, *{source.shape})"
            )
        distribution = self.distribution(self.normalize(flat))
        if deterministic:
            action = distribution.mode()
        else:
            if rng is None:
                raise UserError(
                    "predict(deterministic=False) needs rng=numpy.random.default_rng(seed)"
                )
            action = distribution.sample(self.spec.head.noise(rng, (len(flat),)))
        actions = self.spec.head.to_environment(action)
        return actions if batched else actions[0]

    def state(self) -> dict[str, Any]:
        """Parameters and normalization as a nested dictionary of arrays."""
        return {
            "parameters": parameters_to_state(self._parameters),
            "normalizer": self.normalizer.state() if self.normalizer is not None else None,
        }

    @classmethod
    def from_state(cls, spec: PolicySpec, state: dict[str, Any]) -> Policy:
        """Rebuild a policy from :meth:`state`."""
        normalizer = None
        if state["normalizer"] is not None:
            normalizer = ObservationNormalizer(spec.observation_space.shape)
            normalizer.restore(state["normalizer"])
        return cls(spec, parameters_from_state(state["parameters"]), normalizer)


def numpy_parameters(parameters: PolicyParameters) -> PolicyParameters:
    """The same parameters as NumPy arrays."""
    network, log_std = parameters
    return PolicyParameters(numpy_network(network), np.asarray(log_std))


def numpy_network(network: Network) -> Network:
    """The same network as NumPy arrays."""
    convolutions, dense = (
        tuple(Layer(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in layers)
        for layers in network
    )
    return Network(convolutions, dense)


def network_to_state(network: Network) -> dict[str, Any]:
    """A network as nested dictionaries of NumPy arrays."""
    return {
        kind: {str(i): layer._asdict() for i, layer in enumerate(layers)}
        for kind, layers in numpy_network(network)._asdict().items()
    }


def network_from_state(state: dict[str, Any]) -> Network:
    """Undo :func:`network_to_state`."""
    convolutions, dense = (
        tuple(Layer(**state[kind][str(i)]) for i in range(len(state[kind])))
        for kind in Network._fields
    )
    return Network(convolutions, dense)


def parameters_to_state(parameters: PolicyParameters) -> dict[str, Any]:
    """Policy parameters as nested dictionaries of NumPy arrays."""
    return {
        "network": network_to_state(parameters.network),
        "log_std": np.asarray(parameters.log_std),
    }


def parameters_from_state(state: dict[str, Any]) -> PolicyParameters:
    """Undo :func:`parameters_to_state`."""
    return PolicyParameters(network_from_state(state["network"]), state["log_std"])
