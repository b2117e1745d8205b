"""A2C with the trust region of ACER (Wang et al. 2017, 1611.01224, section 3.3).

    phi_theta(s)  the statistics of pi_theta(.|s): means and log deviations, or logits
    g = grad_phi (log pi(a|s) A + c H(pi)),    k = grad_phi KL(pi_average(.|s) || pi_theta(.|s))
    z = g - max(0, (k . g - delta) / |k|^2) k       nearest to g such that k . z <= delta
    theta <- theta + alpha RMSprop(E[(d phi / d theta)^T z])
    theta_average <- tau theta_average + (1 - tau) theta

It is the "A2C + trust region" of PPO's figure 3, which cites this paper. There is no second
derivative and no line search: the gradient is bent, state by state, where it would carry the policy
away from the average of its recent past, and then goes through A2C's own optimizer. So it bounds a
direction, not the KL divergence of a step; that is TRPO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
from jax import numpy as jnp
from pydantic import Field

from tether import objectives
from tether.control.critic import Data
from tether.control.learner import OnPolicyConfig
from tether.control.methods.a2c import A2C, A2CConfig, Learnt
from tether.control.parameters import PolicyParameters
from tether.control.policy import PolicySpec

Array = Any


class A2CTRConfig(A2CConfig):
    """Settings of A2C with a trust region."""

    learning_rate: float = Field(2e-3, gt=0)
    """The initial step size of actor and critic (usual: 1e-4 to 2e-3)."""
    entropy_coefficient: float = Field(0.001, ge=0)
    """The weight of the entropy bonus. Raising it keeps the policy random for longer (usual: 0 to
    0.01)."""
    max_slope: float = Field(1.0, gt=0)
    """The paper's delta: how fast the KL divergence may grow along a state's gradient (usual: 0.1
    to 2)."""
    average_decay: float = Field(0.99, ge=0, lt=1)
    """The decay rate of the average policy. Raising it holds the policy back for longer."""


def bent_gradient(
    config: A2CTRConfig, spec: PolicySpec, learnt: Learnt, data: Data, advantage: Array
) -> tuple[PolicyParameters, dict[str, Array]]:
    """The policy gradient after each state's part has been bent into the trust region."""

    def statistics(parameters: Any) -> Array:  # (M, outputs + scales)
        outputs = spec.network.apply(parameters.network, data.observation)
        log_std = jnp.broadcast_to(parameters.log_std, (len(outputs), spec.head.scales))
        return jnp.concatenate([outputs, log_std], axis=-1)

    def distribution(phi: Array) -> Any:
        outputs, log_std = jnp.split(phi, [spec.head.outputs], axis=-1)
        return spec.head.distribution(outputs, log_std)

    def gain(phi: Array) -> tuple[Array, Array]:
        pi = distribution(phi)
        entropy = pi.entropy()
        objective = objectives.policy_gradient(pi.log_prob(data.action), advantage, reduction="sum")
        return objective + config.entropy_coefficient * jnp.sum(entropy), jnp.mean(entropy)

    phi, back = jax.vjp(statistics, learnt.actor)
    average = distribution(statistics(learnt.average))
    g, entropy = jax.grad(gain, has_aux=True)(phi)
    k = jax.grad(lambda phi: jnp.sum(average.kl(distribution(phi))))(phi)
    z = objectives.trust_region_projection(g, k, config.max_slope)
    (gradient,) = back(z / len(z))
    return gradient, {
        "policy/entropy": entropy,
        "trust_region/bent": jnp.mean((z != g).any(axis=-1).astype(jnp.float32)),
        "trust_region/kl": jnp.mean(average.kl(distribution(phi))),
    }


def moving_average(
    config: A2CTRConfig, average: PolicyParameters, actor: PolicyParameters
) -> PolicyParameters:
    """theta_average, after the policy has moved to `actor`."""
    tau = config.average_decay
    moved: PolicyParameters = jax.tree.map(
        lambda old, new: tau * old + (1 - tau) * new, average, actor
    )
    return moved


class A2CTR(A2C):
    """A2C whose gradient may not lead away from the policy's recent past."""

    config: A2CTRConfig
    config_class: ClassVar[type[OnPolicyConfig]] = A2CTRConfig
    gradient: ClassVar[Callable[..., tuple[PolicyParameters, dict[str, Array]]]] = staticmethod(
        bent_gradient
    )
    follow: ClassVar[Callable[..., PolicyParameters | None]] = staticmethod(moving_average)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # A2C's with three times its step size, which the trust region bears.
        "default": {},
        # A2C's, with delta and the average's decay of Wang et al. 2017, section 4.
        "paper": {**A2C.presets["paper"], "max_slope": 1.0, "average_decay": 0.99},
    }
