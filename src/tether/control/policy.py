"""A policy: network, action distribution and the normalization it was trained under."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gymnasium as gym
import numpy as np

from tether.control.architectures import (
    Perceptron,
    PolicyNetwork,
    acting,
    check_network,
    given_network,
    network_name,
)
from tether.control.distributions import ActionHead, Distribution, action_head
from tether.control.envs.spaces import policy_space
from tether.control.envs.spaces_json import space_from_json, space_to_json
from tether.control.networks import Activation
from tether.control.normalization import ObservationNormalizer
from tether.control.observations import flat_observations
from tether.control.parameters import (
    PolicyParameters,
    network_leaves,
    numpy_parameters,
    parameters_from_state,
    parameters_to_state,
)
from tether.errors import RunError, UserError
from tether.learning.storage.checkpoint import load_checkpoint, save_checkpoint

Array = Any

FILE_KIND = "policy"
"""What the facts in a file of :meth:`Policy.save` say it is."""


class PolicySpec(NamedTuple):
    """What a policy maps from and to: enough to rebuild it without its environment.

    Attributes:
        source_space: the environment's own observation space.
        observation_space: what the network sees of it.
        head: how the network's outputs become actions.
        hidden: widths of the built-in network's dense layers.
        normalize: whether observations are normalized.
        activation: the function between them.
        scale_actions: whether a Box's finite bounds are -1 and 1 to the policy.
        own_network: the user's network in place of the built-in one, or None.
    """

    source_space: gym.Space[Any]
    observation_space: gym.spaces.Box
    head: ActionHead
    hidden: tuple[int, ...]
    normalize: bool
    activation: Activation = "tanh"
    scale_actions: bool = False
    own_network: PolicyNetwork | None = None

    @classmethod
    def of(
        cls,
        source_space: gym.Space[Any],
        action_space: gym.Space[Any],
        hidden: tuple[int, ...],
        normalize: bool,
        *,
        activation: Activation = "tanh",
        scale_actions: bool = False,
        network: PolicyNetwork | None = None,
    ) -> PolicySpec:
        """The spec for an environment's own spaces; images are never normalized.

        Raises:
            UserError: `network` does not keep its promises; see
                :class:`tether.control.architectures.PolicyNetwork`.
        """
        space = policy_space(source_space)
        vector = len(space.shape) == 1
        head = action_head(action_space, scale_actions=scale_actions)
        own = given_network(network)
        if own is not None:
            check_network(own, space.shape, _seen_dtype(space), head.outputs)
        seen = normalize and vector
        return cls(source_space, space, head, hidden, seen, activation, scale_actions, own)

    @property
    def network(self) -> PolicyNetwork:
        """The network of the policy and of its critic: the user's own, or the built-in one."""
        if self.own_network is not None:
            return self.own_network
        return Perceptron(self.hidden, self.activation)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-able values."""
        own = {} if self.own_network is None else {"network": network_name(self.own_network)}
        return {
            "observation_space": space_to_json(self.source_space),
            "action_space": space_to_json(self.head.space),
            "hidden": list(self.hidden),
            "normalize": self.normalize,
            "activation": self.activation,
            "scale_actions": self.scale_actions,
            **own,
        }

    @classmethod
    def from_json(cls, spec: dict[str, Any], network: Any = None) -> PolicySpec:
        """Undo :meth:`to_json`.

        Args:
            spec: the JSON-able values.
            network: the user's network, where the policy has one: code is never saved.

        Raises:
            UserError: the policy has a network of the user's own and it is not given, or it has
                none and one is.
        """
        recorded = spec.get("network")
        if recorded is not None and network is None:
            raise UserError(
                f"this policy has its own network, {recorded}, which no file can hold; pass the "
                "same object as network= (on the command line --network module:object)"
            )
        if recorded is None and network is not None:
            raise UserError(
                "this policy has the built-in network; leave network= out to go on with it"
            )
        activation = spec.get("activation", "tanh")  # absent from the first records
        if activation not in get_args(Activation):
            raise UserError(
                f"the policy's activation is {activation!r}; expected one of "
                f"{', '.join(get_args(Activation))}"
            )
        return cls.of(
            space_from_json(spec["observation_space"]),
            space_from_json(spec["action_space"]),
            tuple(int(width) for width in spec["hidden"]),
            bool(spec["normalize"]),
            activation=activation,
            scale_actions=bool(spec.get("scale_actions", False)),  # likewise
            network=network,
        )

    def init(self, rng: np.random.Generator, log_std: float) -> PolicyParameters:
        """Fresh parameters; `log_std` is the initial log standard deviation of every Box action."""
        network = self.init_network(rng, self.head.outputs, output_gain=0.01)
        return PolicyParameters(network, np.full(self.head.scales, log_std, np.float32))

    def init_network(self, rng: np.random.Generator, outputs: int, output_gain: float) -> Any:
        """Fresh parameters of a network of this kind that sees the policy's observations."""
        return self.network.init(rng, self.observation_space.shape, outputs, output_gain)

    def distribution(self, parameters: PolicyParameters, observation: Array) -> Distribution:
        """pi(.|s) for a batch of normalized observations, in NumPy or JAX."""
        return self.head.distribution(
            self.network.apply(parameters.network, observation), parameters.log_std
        )


class Policy:
    """A policy ready to act.

    One observation in, one action out, or a batch in and a batch out.
    :func:`tether.as_sb3` gives it the interface of a Stable-Baselines3 model.
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
        space = spec.observation_space
        self._outputs = acting(
            spec.network, self._parameters.network, space.shape, _seen_dtype(space)
        )

    @property
    def parameters(self) -> PolicyParameters:
        """The parameters as NumPy arrays; assign NumPy or JAX arrays."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: PolicyParameters) -> None:
        self._parameters = numpy_parameters(parameters)

    def distribution(self, observation: np.ndarray) -> Distribution:
        """pi(.|s) for a batch of normalized observations, NumPy in and out."""
        network, log_std = self._parameters
        return self.spec.head.distribution(self._outputs(network, observation), log_std)

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

        Unlike `predict` of Stable-Baselines3 it returns the action alone, without a recurrent
        state, takes the most probable action by default, and samples from a generator of
        the caller's; :func:`tether.as_sb3` is the other way around.

        Args:
            observation: one observation of the environment's own space (lists and dictionaries
                too), or a batch of them: arrays or lists with a further first axis, dictionaries of
                such arrays, or a list of observations.
            deterministic: the most probable action; else a sample.
            rng: source of the sample's noise; required when not deterministic.

        Returns:
            One action of the action space, or a batch of them.

        Raises:
            UserError: the observation fits neither one observation nor a batch, or it holds NaN or
                infinity.
        """
        flat, batched = flat_observations(self.spec.source_space, observation)
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

    def save(self, path: str | Path) -> Path:
        """Write the policy to one file, which :meth:`load` and :func:`tether.load` read.

        It is a safetensors file sealed by a checksum, without pickle, that holds the parameters,
        the normalization and the spaces. A network of the user's own is not in it.

        Args:
            path: the file, usually ``name.safetensors``; an older one is replaced.

        Returns:
            The path.

        Raises:
            RunError: the file cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise RunError(f"cannot save the policy to {path}: it is a folder; expected a file")
        save_checkpoint(path, self.state(), {"kind": FILE_KIND, "policy": self.spec.to_json()})
        return path

    @classmethod
    def load(cls, path: str | Path, *, network: Any = None) -> Policy:
        """Read a policy that :meth:`save` wrote.

        Args:
            path: the file.
            network: the user's network, where the policy has one of its own.

        Raises:
            RunError: the file is missing, damaged, or not one of a policy.
            UserError: `network` is missing or does not fit.
        """
        state, info = load_checkpoint(path)
        if info.get("kind") != FILE_KIND:
            raise RunError(
                f"{path} is not a policy saved by policy.save; to load a run's policy, give the "
                "run's folder"
            )
        recorded: Any = info["policy"]
        saved: Any = state
        return cls.from_state(PolicySpec.from_json(recorded, network), saved)

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
        like = None
        if spec.own_network is not None:
            like = spec.init(np.random.default_rng(0), 0.0)
        return cls(spec, parameters_from_state(state["parameters"], like), normalizer)

    def fingerprint(self) -> str:
        """A SHA-256 over the policy's numbers."""
        digest = hashlib.sha256()
        network, log_std = self.parameters
        arrays = [*network_leaves(network), log_std]
        if self.normalizer is not None:
            moments = self.normalizer.moments
            arrays += [moments.mean, moments.variance]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _seen_dtype(space: gym.spaces.Box) -> Any:
    """Type of what the network sees: images as they are, vectors as float32."""
    return space.dtype if len(space.shape) == 3 else np.dtype(np.float32)
