"""What the policy-gradient methods share: one gradient of a whole batch, and one step along it."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax import numpy as jnp

from tether import objectives
from tether.control.critic import Data
from tether.control.parameters import PolicyParameters
from tether.control.policy import PolicySpec

Array = Any


def policy_gradient(
    spec: PolicySpec,
    parameters: PolicyParameters,
    data: Data,
    weight: Array,
    entropy_coefficient: float = 0.0,
) -> tuple[PolicyParameters, dict[str, Array]]:
    """Gradient of E[log pi(a|s) w] + c H(pi) over a batch; it points UP.

    Args:
        spec: what the parameters stand for.
        parameters: the policy's.
        data: the batch, M transitions.
        weight: w, (M,): return, action value or advantage, a constant.
        entropy_coefficient: c.

    Returns:
        The gradient, shaped like `parameters`, and the policy's mean entropy as a metric.
    """

    def objective(parameters: PolicyParameters) -> tuple[Array, dict[str, Array]]:
        pi = spec.distribution(parameters, data.observation)
        gain = objectives.policy_gradient(pi.log_prob(data.action), weight)
        entropy = jnp.mean(pi.entropy())
        return gain + entropy_coefficient * entropy, {"policy/entropy": entropy}

    gradient, metrics = jax.grad(objective, has_aux=True)(parameters)
    return gradient, metrics


def ascend(
    optimizer: optax.GradientTransformation,
    parameters: PolicyParameters,
    moments: Any,
    gradient: PolicyParameters,
    rate: Array,
) -> tuple[PolicyParameters, Any]:
    """One step of size `rate` in the optimizer's direction; parameters and moments after it."""
    down = jax.tree.map(jnp.negative, gradient)
    update, moments = optimizer.update(down, moments, parameters)
    return jax.tree.map(lambda p, u: p - rate * u, parameters, update), moments


def mean_kl(
    spec: PolicySpec, old: PolicyParameters, new: PolicyParameters, observation: Array
) -> Array:
    """E_s[KL(pi_old(.|s) || pi_new(.|s))] in nats over observations (M, *obs), in closed form."""
    before, after = spec.distribution(old, observation), spec.distribution(new, observation)
    return jnp.mean(before.kl(after))
