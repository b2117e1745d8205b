"""Advantage actor-critic, synchronous (A2C; the A3C of Mnih et al. 2016, 1602.01783, in step).

    for each iteration:
        n steps in every environment with pi_theta
        A = (sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n})) - V(s_t)       n-step, or GAE
        theta <- theta + alpha RMSprop(E[grad log pi_theta(a|s) A] + c grad H(pi_theta))
        phi   <- phi - alpha RMSprop(E[(V_phi(s) - A - V(s)) grad V_phi(s)])

Each batch gives one gradient of the policy and one of the critic, and is thrown away. Batches are
small (16 environments of 10 steps), so there are many: the whole update is one compiled call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import optax
from pydantic import Field

from tether import objectives
from tether.control.compilation import share
from tether.control.critic import Data, batch, estimate
from tether.control.device import jit
from tether.control.learner import NO_SAFEGUARDS, OnPolicyConfig, OnPolicyLearner
from tether.control.optimizer import (
    adam,
    descend,
    moments_from_state,
    moments_to_state,
    rmsprop,
)
from tether.control.parameters import (
    PolicyParameters,
    network_from_state,
    network_to_state,
    parameters_from_state,
    parameters_to_state,
)
from tether.control.policy import PolicySpec
from tether.control.policy_gradient import ascend, mean_kl, policy_gradient
from tether.control.rollout import Rollout
from tether.learning.config import When
from tether.learning.learner import Metrics, State

Array = Any


class A2CConfig(OnPolicyConfig):
    """Settings of A2C."""

    applies: ClassVar[dict[str, When]] = {"rmsprop_decay": When("optimizer", "rmsprop")}

    num_envs: int = Field(16, ge=1)
    """Environments stepped side by side. More of them decorrelate each small batch (usual: 8 to
    64)."""
    steps_per_iteration: int = Field(160, ge=1)
    """Transitions in each gradient, counted over all environments: n times num_envs (usual n: 5 to
    20)."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda within the n steps; 1 is the paper's n-step return."""
    initial_log_std: float = -0.5
    """The initial log standard deviation of every Box action. Raising it explores more."""
    learning_rate: float = Field(7e-4, gt=0)
    """The initial step size of actor and critic (usual: 1e-4 to 1e-3)."""
    anneal: bool = True
    """Lowers the step size linearly to zero over the run."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """The optimizer. RMSprop is the paper's; Adam adds momentum."""
    rmsprop_decay: float = Field(0.99, ge=0, lt=1)
    """RMSprop's decay rate for the squared gradients; closer to 1 remembers longer."""
    optimizer_epsilon: float = Field(1e-5, gt=0)
    """Added to the root of the squared gradients. Raising it shortens the steps where gradients
    vanish."""
    max_grad_norm: float | None = Field(0.5, gt=0)
    """The largest norm of the actor's and of the critic's gradient, each by itself; larger
    gradients are scaled down."""
    entropy_coefficient: float = Field(0.003, ge=0)
    """The weight of the entropy bonus. Raising it keeps the policy random for longer (usual: 0 to
    0.01)."""


class Learnt(NamedTuple):
    """All that an update moves."""

    actor: PolicyParameters
    critic: Any
    actor_moments: Any
    critic_moments: Any
    average: PolicyParameters | None  # what a trust region is measured from


def plain_gradient(
    config: A2CConfig, spec: PolicySpec, learnt: Learnt, data: Data, advantage: Array
) -> tuple[PolicyParameters, dict[str, Array]]:
    """The policy gradient with the entropy bonus, as it is."""
    return policy_gradient(spec, learnt.actor, data, advantage, config.entropy_coefficient)


def no_average(
    config: A2CConfig, average: PolicyParameters | None, actor: PolicyParameters
) -> PolicyParameters | None:
    """A2C measures its steps from nowhere."""
    return None


class A2C(OnPolicyLearner):
    """One step of actor and critic for every n steps of many environments.

    A variant overrides `gradient`, the policy's direction, and `follow`, which moves the average
    policy that the direction may depend on; both are compiled into the update.
    """

    config: A2CConfig
    config_class: ClassVar[type[OnPolicyConfig]] = A2CConfig
    gradient: ClassVar[Callable[..., tuple[PolicyParameters, dict[str, Array]]]] = staticmethod(
        plain_gradient
    )
    follow: ClassVar[Callable[..., PolicyParameters | None]] = staticmethod(no_average)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The field defaults: the settings of Tianshou's MuJoCo benchmark with twice its steps to a
        # gradient and a third of its entropy bonus; docs/policy-gradients.md has what each is for.
        "default": {},
        # Mnih et al. 2016, section 8 (five-step returns, RMSprop with decay 0.99, entropy weight
        # 0.01), with the environments, step size and epsilon of OpenAI Baselines' a2c.
        "paper": {
            "num_envs": 16,
            "steps_per_iteration": 80,
            "gamma": 0.99,
            "lam": 1.0,
            "hidden": (64, 64),
            "initial_log_std": 0.0,
            "activation": "tanh",
            "normalize_observation": True,
            "scale_actions": False,
            "normalize_reward": True,
            "stagger": True,
            **NO_SAFEGUARDS,
            "learning_rate": 7e-4,
            "anneal": True,
            "optimizer": "rmsprop",
            "rmsprop_decay": 0.99,
            "optimizer_epsilon": 1e-5,
            "max_grad_norm": 0.5,
            "entropy_coefficient": 0.01,
        },
    }

    def init(self, rng: np.random.Generator) -> None:
        kind = type(self)
        self._compiled = compiled(self.config, self.spec, kind.gradient, kind.follow)
        start = self._compiled.optimizer.init
        actor = self.policy.parameters
        critic = self.spec.init_network(rng, 1, output_gain=1.0)
        average = kind.follow(self.config, actor, actor)
        self.learnt = Learnt(actor, critic, start(actor), start(critic), average)

    def update(self, rollout: Rollout) -> Metrics:
        config = self.config
        rate = np.float32(config.learning_rate * (1 - self.progress * config.anneal))
        self.learnt, metrics = self._compiled.update(self.learnt, batch(rollout), rate)
        self.policy.parameters = self.learnt.actor
        return {
            **{name: float(value) for name, value in metrics.items()},
            "optimizer/learning_rate": float(rate),
        }

    def method_state(self) -> State:
        average = self.learnt.average
        return {
            "critic": network_to_state(self.learnt.critic),
            "actor_moments": moments_to_state(self.learnt.actor_moments),
            "critic_moments": moments_to_state(self.learnt.critic_moments),
            "average": parameters_to_state(average) if average is not None else None,
        }

    def restore_method(self, state: State) -> None:
        restored: Any = state
        average = restored["average"]
        self.learnt = Learnt(
            self.policy.parameters,
            network_from_state(restored["critic"], self.learnt.critic),
            moments_from_state(self.learnt.actor_moments, restored["actor_moments"]),
            moments_from_state(self.learnt.critic_moments, restored["critic_moments"]),
            parameters_from_state(average, self.policy.parameters) if average is not None else None,
        )


class Compiled(NamedTuple):
    """The compiled update and its optimizer."""

    optimizer: optax.GradientTransformation
    update: Callable[..., tuple[Learnt, dict[str, Array]]]


@share
def compiled(
    config: A2CConfig,
    spec: PolicySpec,
    gradient: Callable[..., tuple[PolicyParameters, dict[str, Array]]] = plain_gradient,
    follow: Callable[..., PolicyParameters | None] = no_average,
) -> Compiled:
    """A2C's update for one configuration, compiled once."""
    if config.optimizer == "adam":
        optimizer = adam(config.optimizer_epsilon, config.max_grad_norm)
    else:
        optimizer = rmsprop(config.rmsprop_decay, config.optimizer_epsilon, config.max_grad_norm)

    apply = spec.network.apply

    def critic_loss(critic: Any, data: Data, target: Array) -> tuple[Array, dict[str, Array]]:
        loss = objectives.value_loss(apply(critic, data.observation)[:, 0], target)
        return loss, {"value/loss": loss}

    def update(learnt: Learnt, data: Data, rate: Array) -> tuple[Learnt, dict[str, Array]]:
        judged = estimate(learnt.critic, data, config.gamma, config.lam, apply)
        up, actor_metrics = gradient(config, spec, learnt, data, judged.advantage)
        actor, actor_moments = ascend(optimizer, learnt.actor, learnt.actor_moments, up, rate)
        critic, critic_moments, critic_metrics, norm = descend(
            optimizer,
            lambda critic: critic_loss(critic, data, judged.target),
            learnt.critic,
            learnt.critic_moments,
            rate,
        )
        average = follow(config, learnt.average, actor)
        metrics = {
            **actor_metrics,
            **critic_metrics,
            "policy/gradient_norm": optax.tree.norm(up),
            "policy/kl": mean_kl(spec, learnt.actor, actor, data.observation),
            "value/gradient_norm": norm,
            "value/explained_variance": objectives.explained_variance(judged.value, judged.target),
        }
        return Learnt(actor, critic, actor_moments, critic_moments, average), metrics

    return Compiled(optimizer, jit(update))
