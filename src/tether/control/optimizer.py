"""Adam and RMSprop for networks this small, and how their moments are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from tether.learning.learner import State

Loss = Callable[[Any], tuple[Any, dict[str, Any]]]


def adam(epsilon: float, max_grad_norm: float | None) -> optax.GradientTransformation:
    """Adam's direction, without a step size, for gradients clipped to `max_grad_norm`.

    It works on one flat vector: on a dozen small arrays Adam is a dozen small kernels.
    """
    return _clipped(optax.scale_by_adam(eps=epsilon), max_grad_norm)


def rmsprop(
    decay: float, epsilon: float, max_grad_norm: float | None
) -> optax.GradientTransformation:
    """RMSprop's direction, without a step size, for gradients clipped to `max_grad_norm`.

    g / (sqrt(v) + epsilon), v starting from zero, as PyTorch has it and as A2C's published settings
    mean it.
    """
    scale = optax.scale_by_rms(decay=decay, eps=epsilon, eps_in_sqrt=False)
    return _clipped(scale, max_grad_norm)


def descend(
    optimizer: optax.GradientTransformation, loss: Loss, parameters: Any, moments: Any, rate: Any
) -> tuple[Any, Any, dict[str, Any], Any]:
    """One step down `loss`, which returns its value and metrics.

    Returns:
        New parameters and moments, the loss's metrics, and the norm of the unclipped gradient.
    """
    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
    update, moments = optimizer.update(gradient, moments, parameters)
    parameters = jax.tree.map(lambda p, u: p - rate * u, parameters, update)
    return parameters, moments, metrics, optax.tree.norm(gradient)


def moments_to_state(moments: Any) -> State:
    """An optimizer's moments as NumPy arrays, in the order of the tree's leaves."""
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(moments))}


def moments_from_state(like: Any, state: Any) -> Any:
    """Undo :func:`moments_to_state`; `like` has the tree's structure."""
    leaves = [state[str(i)] for i in range(len(state))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _clipped(
    scale: optax.GradientTransformation, max_grad_norm: float | None
) -> optax.GradientTransformation:
    transforms = [scale]
    if max_grad_norm is not None:
        transforms.insert(0, optax.clip_by_global_norm(max_grad_norm))
    return optax.flatten(optax.chain(*transforms))
