"""The networks of a policy and of its critic: tether's own, or one of the user's.

A network of the user's is an object, or a class without arguments, with two methods::

    class Residual:
        def init(self, rng, observation_shape, outputs, output_gain):
            width = observation_shape[0]
            return {
                "inner": (rng.standard_normal((width, width)) / width**0.5).astype("float32"),
                "outer": (output_gain * rng.standard_normal((width, outputs))).astype("float32"),
            }

        def apply(self, parameters, observation):
            hidden = observation + abs(observation @ parameters["inner"])
            return hidden @ parameters["outer"]

`init` makes the parameters of one network from a NumPy generator, `apply` is its forward pass. The
policy and its critic are two networks of this kind, with parameters of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tether.control.networks import Activation, Network, forward, init_network
from tether.errors import UserError

Array = Any
Parameters = Any  # any tree of arrays that JAX knows: dicts, tuples, lists, named tuples

_ROWS = 3


@runtime_checkable
class PolicyNetwork(Protocol):
    """What ``network=`` takes."""

    def init(
        self,
        rng: np.random.Generator,
        observation_shape: tuple[int, ...],
        outputs: int,
        output_gain: float,
    ) -> Parameters:
        """Fresh parameters of one network.

        Args:
            rng: the source of all randomness.
            observation_shape: (D,) for vectors, (H, W, C) for images.
            outputs: how many numbers the network puts out for each observation.
            output_gain: scale wanted of the last layer: 0.01 for a policy, 1 for a critic.

        Returns:
            A tree (dicts, lists, tuples) of float arrays.
        """
        ...

    def apply(self, parameters: Parameters, observation: Array) -> Array:
        """The outputs (B, outputs) for observations (B, D), float32, or (B, H, W, C), uint8.

        It must work on JAX's arrays, which learning needs. One that answers NumPy arrays with a
        NumPy array acts in NumPy, which is quicker for a few rows; another is compiled.
        """
        ...


@dataclass(frozen=True)
class Perceptron:
    """The built-in network: convolutions for images, then dense layers of widths `hidden`."""

    hidden: tuple[int, ...]
    activation: Activation = "tanh"

    def init(
        self,
        rng: np.random.Generator,
        observation_shape: tuple[int, ...],
        outputs: int,
        output_gain: float,
    ) -> Network:
        """See :func:`tether.control.networks.init_network`."""
        return init_network(rng, observation_shape, self.hidden, outputs, output_gain)

    def apply(self, parameters: Network, observation: Array) -> Array:
        """See :func:`tether.control.networks.forward`."""
        return forward(parameters, observation, self.activation)


def given_network(network: Any) -> PolicyNetwork | None:
    """What the user gave as ``network=``, as an object.

    Raises:
        UserError: it has no `init` or no `apply`, or is a class that needs arguments.
    """
    if network is None:
        return None
    made = network
    if isinstance(network, type):
        try:
            made = network()
        except TypeError as error:
            raise UserError(
                f"network={network.__name__} is a class that cannot be made without arguments "
                f"({error}); pass an object of it"
            ) from error
    missing = [name for name in ("init", "apply") if not callable(getattr(made, name, None))]
    if missing:
        raise UserError(
            f"network={network_name(made)} has no method {' and no method '.join(missing)}; "
            "expected init(rng, observation_shape, outputs, output_gain) and "
            "apply(parameters, observation)"
        )
    checked: PolicyNetwork = made
    return checked


def network_name(network: Any) -> str:
    """The class of a network, as records and messages name it."""
    kind = network if isinstance(network, type) else type(network)
    return f"{kind.__module__}:{kind.__qualname__}"


def check_network(network: PolicyNetwork, shape: tuple[int, ...], dtype: Any, outputs: int) -> None:
    """Try a network of the user's on `_ROWS` observations, in NumPy and in JAX.

    Raises:
        UserError: a method raises, parameters are not finite floats, or outputs have another shape
            than (rows, outputs), or are not finite; one line.
    """
    import jax

    name = f"network {network_name(network)}"
    observation = np.full((_ROWS, *shape), 0.5 if np.dtype(dtype).kind == "f" else 1, dtype)
    with _said(f"{name}: init({shape}, outputs={outputs})"):
        parameters = network.init(np.random.default_rng(0), shape, outputs, 1.0)
    leaves = jax.tree.leaves(parameters)
    if not leaves:
        raise UserError(f"{name}: init made no arrays; expected a tree of float arrays")
    for leaf in leaves:
        kind = getattr(leaf, "dtype", np.dtype(object)).kind
        if kind != "f" or not np.isfinite(np.asarray(leaf)).all():
            what = f"an array of {leaf.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__
            raise UserError(f"{name}: init made {what}; expected finite float arrays only")
    with _said(f"{name}: apply, given NumPy arrays,"):
        found = network.apply(parameters, observation)
    expected = (_ROWS, outputs)
    if np.shape(found) != expected:
        raise UserError(
            f"{name}: apply made outputs of shape {np.shape(found)} for {_ROWS} observations of "
            f"shape {shape}; expected {expected}"
        )
    if not np.isfinite(np.asarray(found)).all():
        raise UserError(f"{name}: apply made outputs that are not finite from fresh parameters")
    with _said(f"{name}: apply, given JAX arrays,"):
        traced = jax.eval_shape(network.apply, parameters, observation)
    if traced.shape != expected:
        raise UserError(
            f"{name}: apply made outputs of shape {traced.shape} of JAX arrays; expected {expected}"
        )


def acting(
    network: PolicyNetwork, parameters: Parameters, shape: tuple[int, ...], dtype: Any
) -> Callable[[Parameters, np.ndarray], np.ndarray]:
    """The forward pass as acting uses it, from NumPy to NumPy: NumPy's own where that works."""
    if isinstance(network, Perceptron):
        numpy_answers = not parameters.convolutions
    else:
        answer = network.apply(parameters, np.zeros((1, *shape), dtype))
        numpy_answers = isinstance(answer, np.ndarray)
    if numpy_answers:
        return network.apply
    from tether.control.device import jit

    compiled = jit(network.apply)
    return lambda parameters, observation: np.asarray(compiled(parameters, observation))


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn whatever a user's method raises into one line that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what} raised {said[:200]}") from error
