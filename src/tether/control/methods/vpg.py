"""Vanilla policy gradient with a critic and an adaptive step size.

    for each iteration:
        collect partial trajectories with pi_theta
        estimate advantages A with GAE                          (Schulman et al. 2016)
        theta <- theta + alpha Adam(E[grad log pi_theta(a|s) A])     one step, of the whole batch
        alpha <- alpha / 1.5 or 1.5 alpha, as the step's KL divergence was too large or too small
        fit the critic to A + V

It is the "vanilla PG, adaptive" of PPO's figure 3 (Schulman et al. 2017, section 6.2, footnote 3):
"after each batch of data, the Adam stepsize is adjusted based on the KL divergence of the original
and updated policy". The step that was too large has been taken all the same: that is what separates
it from a trust region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import optax
from pydantic import Field

from tether import objectives
from tether.control.compilation import share
from tether.control.critic import ADAM_EPSILON, Critic, CriticConfig, Data, batch
from tether.control.device import jit
from tether.control.learner import NO_SAFEGUARDS, OnPolicyConfig, OnPolicyLearner
from tether.control.optimizer import adam, moments_from_state, moments_to_state
from tether.control.parameters import PolicyParameters
from tether.control.policy import PolicySpec
from tether.control.policy_gradient import ascend, mean_kl, policy_gradient
from tether.control.rollout import Rollout
from tether.learning.learner import Metrics, State

Array = Any

SMALLEST_STEP, LARGEST_STEP = 1e-8, 0.1
"""Bounds of the step size. A policy that has become certain moves by no KL divergence at all, and
the rule would raise its step size for ever; the next surprise would then throw it far away."""


class VPGConfig(CriticConfig):
    """Settings of the vanilla policy gradient."""

    steps_per_iteration: int = Field(1024, ge=1)
    """Transitions in each update. More of them make each update better and updates fewer (usual:
    1024 to 8192)."""
    gamma: float = Field(0.995, ge=0, le=1)
    """The discount factor. Raising it looks further ahead and adds variance (usual: 0.98 to
    0.999)."""
    initial_log_std: float = -0.5
    """The initial log standard deviation of every Box action. Raising it explores more."""
    learning_rate: float = Field(3e-3, gt=SMALLEST_STEP, le=LARGEST_STEP)
    """Adam's initial step size for the policy; after the first update kl_target adjusts it."""
    kl_target: float = Field(0.01, gt=0)
    """The KL divergence that an update should have, in nats. Raising it learns faster until updates
    fail."""
    adaptive: bool = True
    """Adjusts the step size by the KL divergence; otherwise it stays the same."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """The weight of the entropy bonus. Raising it keeps the policy random for longer."""


class VPG(OnPolicyLearner):
    """One gradient step per batch, weighted with advantages, its size set by the KL divergence."""

    config: VPGConfig
    config_class: ClassVar[type[OnPolicyConfig]] = VPGConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The field defaults. Longer batches, a shorter horizon and a smaller target, as in `paper`,
        # leave Swimmer where it first swims.
        "default": {},
        # What Schulman et al. 2017 say of all methods of figure 3: network, horizon, discount and
        # lambda (section 6.1, table 3). They name neither the target nor the critic's settings;
        # those are OpenAI Baselines' for ACKTR, whose rule this is, and for trpo_mpi.
        "paper": {
            "num_envs": 32,
            "steps_per_iteration": 2048,
            "gamma": 0.99,
            "lam": 0.95,
            "hidden": (64, 64),
            "initial_log_std": 0.0,
            "activation": "tanh",
            "normalize_observation": True,
            "scale_actions": False,
            "normalize_reward": True,
            "stagger": True,
            **NO_SAFEGUARDS,
            "learning_rate": 3e-4,
            "kl_target": 0.002,
            "adaptive": True,
            "entropy_coefficient": 0.0,
            "critic_epochs": 5,
            "critic_minibatch_size": 64,
            "critic_learning_rate": 1e-3,
        },
    }

    def init(self, rng: np.random.Generator) -> None:
        self.critic = Critic(rng, self.spec, self.config)
        self.learning_rate = self.config.learning_rate
        self._compiled = compiled(self.config, self.spec)
        self._moments = self._compiled.optimizer.init(self.policy.parameters)

    def update(self, rollout: Rollout) -> Metrics:
        config, data, rate = self.config, batch(rollout), self.learning_rate
        estimate = self.critic.judge(data)
        self.policy.parameters, self._moments, arrays = self._compiled.step(
            self.policy.parameters, self._moments, data, estimate.advantage, np.float32(rate)
        )
        metrics = {name: float(value) for name, value in arrays.items()}
        if config.adaptive:
            wanted = objectives.kl_adaptive_step_size(rate, metrics["policy/kl"], config.kl_target)
            self.learning_rate = float(np.clip(wanted, SMALLEST_STEP, LARGEST_STEP))
        return {
            **metrics,
            **self.critic.fit(data, estimate, self.rng),
            "optimizer/learning_rate": rate,
        }

    def method_state(self) -> State:
        return {
            "moments": moments_to_state(self._moments),
            "critic": self.critic.state(),
            "learning_rate": self.learning_rate,
        }

    def restore_method(self, state: State) -> None:
        restored: Any = state
        self._moments = moments_from_state(self._moments, restored["moments"])
        self.critic.restore(restored["critic"])
        self.learning_rate = float(restored["learning_rate"])


class Compiled(NamedTuple):
    """The compiled piece of an update, and its optimizer."""

    optimizer: optax.GradientTransformation
    step: Callable[..., tuple[PolicyParameters, Any, dict[str, Array]]]


@share
def compiled(config: VPGConfig, spec: PolicySpec) -> Compiled:
    """The policy's step for one configuration, compiled once."""
    optimizer = adam(ADAM_EPSILON, None)

    def step(
        parameters: PolicyParameters, moments: Any, data: Data, advantage: Array, rate: Array
    ) -> tuple[PolicyParameters, Any, dict[str, Array]]:
        advantage = objectives.normalize_advantage(advantage)
        gradient, metrics = policy_gradient(
            spec, parameters, data, advantage, config.entropy_coefficient
        )
        after, moments = ascend(optimizer, parameters, moments, gradient, rate)
        return (
            after,
            moments,
            {
                **metrics,
                "policy/gradient_norm": optax.tree.norm(gradient),
                "policy/kl": mean_kl(spec, parameters, after, data.observation),
            },
        )

    return Compiled(optimizer, jit(step))
