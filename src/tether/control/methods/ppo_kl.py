"""PPO with a KL penalty instead of the clip (Schulman et al. 2017, 1707.06347, section 4).

    for each iteration:
        collect partial trajectories with pi_old
        estimate advantages with GAE
        K epochs of minibatch Adam on  E[r A - beta KL(pi_old(.|s) || pi_theta(.|s))]
        d = E[KL(pi_old(.|s) || pi_theta(.|s))] over the batch
        beta <- beta / 2 if d < d_target / 1.5;   2 beta if d > 1.5 d_target

Everything but the objective is PPO's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax import numpy as jnp
from pydantic import Field

from tether import objectives
from tether.control.compilation import share
from tether.control.critic import Data
from tether.control.device import jit
from tether.control.learner import OnPolicyConfig
from tether.control.methods.ppo import PPO, Minibatch, ProximalConfig
from tether.control.parameters import PolicyParameters
from tether.control.policy import PolicySpec
from tether.learning.config import When
from tether.learning.learner import Metrics, State

Array = Any

SMALLEST_BETA, LARGEST_BETA = 1e-4, 1e4
"""Bounds of the price: far beyond where it matters, near enough to come back from by halving."""


class PPOKLConfig(ProximalConfig):
    """Settings of PPO with a KL penalty."""

    applies: ClassVar[dict[str, When]] = {"kl_target": When("fixed_beta", values=(False,))}

    beta: float = Field(1.0, ge=0)
    """The initial KL coefficient; with fixed_beta it stays the same throughout. Raising it makes
    smaller updates."""
    kl_target: float = Field(0.01, gt=0)
    """The KL divergence that an update should have, in nats (usual: 0.003 to 0.03)."""
    fixed_beta: bool = False
    """Keeps the KL coefficient fixed, whatever the KL divergence (the paper tries 0.3, 1, 3 and
    10)."""


class OldPolicy(NamedTuple):
    """The old policy's distribution in every state of the batch, and the KL coefficient."""

    outputs: Array  # (M, outputs) of the network
    log_std: Array
    beta: Array


def penalized(
    config: PPOKLConfig, spec: PolicySpec, seen: Minibatch, old_policy: OldPolicy
) -> tuple[Array, dict[str, Array]]:
    """E[r A - beta KL(pi_old || pi_theta)]."""
    old: Any = spec.head.distribution(old_policy.outputs[seen.rows], old_policy.log_std)
    objective = objectives.kl_penalized_surrogate(
        seen.log_ratio, seen.advantage, old.kl(seen.pi), old_policy.beta
    )
    return objective, {}


class PPOKL(PPO):
    """PPO with a KL penalty whose coefficient adapts to a target divergence."""

    config: PPOKLConfig
    config_class: ClassVar[type[OnPolicyConfig]] = PPOKLConfig
    objective: ClassVar[Callable[..., tuple[Array, dict[str, Array]]]] = staticmethod(penalized)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # Schulman et al. 2017, table 1: the best of the adaptive prices; PPO's settings otherwise.
        "paper": {
            **{
                name: value
                for name, value in PPO.presets["paper"].items()
                if name not in ("epsilon", "target_kl")
            },
            "beta": 1.0,
            "kl_target": 0.01,
            "fixed_beta": False,
        },
    }

    def init(self, rng: np.random.Generator) -> None:
        super().init(rng)
        self.beta = self.config.beta
        self._measure = compiled_measure(self.config, self.spec)

    def old_policy(self, data: Data) -> OldPolicy:
        outputs = self._measure.outputs(self.actor, data.observation)
        return OldPolicy(outputs, self.actor.log_std, np.float32(self.beta))

    def adapt(self, data: Data, old_policy: OldPolicy) -> Metrics:
        config, beta = self.config, self.beta
        kl = float(self._measure.kl(self.actor, data.observation, old_policy))
        if not config.fixed_beta:
            # Once an iteration, by what the whole update did: minibatch by minibatch the rule would
            # see the divergence of single steps and drive beta to nothing.
            wanted = objectives.ppo_adaptive_beta(beta, kl, config.kl_target)
            self.beta = float(np.clip(wanted, SMALLEST_BETA, LARGEST_BETA))
        return {"policy/kl": kl, "policy/beta": beta}

    def method_state(self) -> State:
        return {**super().method_state(), "beta": self.beta}

    def restore_method(self, state: State) -> None:
        super().restore_method(state)
        restored: Any = state
        self.beta = float(restored["beta"])


class Measure(NamedTuple):
    """What the compiled update does not return: the old policy, and how far the new one is."""

    outputs: Callable[[PolicyParameters, Array], Array]
    kl: Callable[[PolicyParameters, Array, OldPolicy], Array]


@share
def compiled_measure(config: PPOKLConfig, spec: PolicySpec) -> Measure:
    """Both measurements for one configuration, compiled once."""

    def outputs(actor: PolicyParameters, observation: Array) -> Array:
        return spec.network.apply(actor.network, observation)

    def kl(actor: PolicyParameters, observation: Array, old_policy: OldPolicy) -> Array:
        old: Any = spec.head.distribution(old_policy.outputs, old_policy.log_std)
        return jnp.mean(old.kl(spec.distribution(actor, observation)))

    return Measure(jit(outputs), jit(kl))
