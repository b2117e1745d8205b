"""A policy's parameters: NumPy arrays for acting, nested dictionaries of them for files.

The built-in network's arrays are saved by name; those of a network of the user's own by their order
in its tree, which JAX knows how to walk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tether.control.networks import Layer, Network
from tether.errors import UserError

Array = Any


class PolicyParameters(NamedTuple):
    """What learning moves: the network and, for Box actions, log standard deviations (A,)."""

    network: Any
    log_std: Array


def numpy_parameters(parameters: PolicyParameters) -> PolicyParameters:
    """The same parameters as NumPy arrays."""
    network, log_std = parameters
    return PolicyParameters(numpy_network(network), np.asarray(log_std))


def numpy_network(network: Any) -> Any:
    """The same network's parameters as NumPy arrays."""
    if not isinstance(network, Network):
        import jax

        return jax.tree.map(np.asarray, network)
    convolutions, dense = (
        tuple(Layer(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in layers)
        for layers in network
    )
    return Network(convolutions, dense)


def network_to_state(network: Any) -> dict[str, Any]:
    """A network's parameters as nested dictionaries of NumPy arrays."""
    if not isinstance(network, Network):
        return {"leaves": {str(i): np.asarray(a) for i, a in enumerate(network_leaves(network))}}
    return {
        kind: {str(i): layer._asdict() for i, layer in enumerate(layers)}
        for kind, layers in numpy_network(network)._asdict().items()
    }


def network_from_state(state: dict[str, Any], like: Any = None) -> Any:
    """Undo :func:`network_to_state`; `like` has the structure of a network of the user's own.

    Raises:
        UserError: the saved arrays are not those of `like`.
    """
    if "leaves" in state:
        import jax

        leaves = [state["leaves"][str(i)] for i in range(len(state["leaves"]))]
        wanted = [] if like is None else jax.tree.leaves(like)
        saved, ours = ([np.shape(leaf) for leaf in part] for part in (leaves, wanted))
        if saved != ours:
            raise UserError(
                f"the saved network has arrays of shapes {saved}, network= makes {ours}; pass the "
                "network that this policy was made with"
            )
        return jax.tree.unflatten(jax.tree.structure(like), leaves)
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


def parameters_from_state(
    state: dict[str, Any], like: PolicyParameters | None = None
) -> PolicyParameters:
    """Undo :func:`parameters_to_state`; `like` as :func:`network_from_state` takes it."""
    structure = None if like is None else like.network
    return PolicyParameters(network_from_state(state["network"], structure), state["log_std"])


def network_leaves(network: Any) -> list[Any]:
    """A network's arrays, in the order in which JAX takes them."""
    if isinstance(network, Network):
        return [array for layers in network for layer in layers for array in layer]
    import jax

    leaves: list[Any] = jax.tree.leaves(network)
    return leaves
