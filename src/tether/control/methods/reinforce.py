"""REINFORCE, the Monte-Carlo policy gradient (Williams 1992).

    for each iteration:
        collect a batch with pi_theta
        G_t = sum_k gamma^k R_{t+k+1}                      an unbiased estimate of Q(s_t, a_t)
        theta <- theta + alpha E[grad log pi_theta(a_t|s_t) w_t]

The lecture's equivalent objectives are one equation with three weights w_t, of falling variance:

    "return"         w_t = G_0             the total return of the episode, on each of its steps
    "reward-to-go"   w_t = G_t             rewards before an action say nothing about it
    "baseline"       w_t = G_t - V(s_t)    a learnt V takes away what the state was worth anyway

Only a finished episode has a Monte-Carlo return, and a batch ends in the middle of some. Without a
critic nothing is known of what follows, so what the batch cuts ends there: a stretch of an episode
within a batch counts as an episode, and so does an episode cut by a time limit. Long batches of few
environments keep that bias small. With the baseline there is a critic, and V(s) of the observation
that followed stands for the rest of a cut episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import optax
from jax import numpy as jnp
from pydantic import Field

from tether import objectives
from tether.control.compilation import share
from tether.control.critic import ADAM_EPSILON, Critic, CriticConfig, Data, batch
from tether.control.device import jit
from tether.control.learner import OnPolicyConfig, OnPolicyLearner
from tether.control.optimizer import adam, moments_from_state, moments_to_state
from tether.control.parameters import PolicyParameters
from tether.control.policy import PolicySpec
from tether.control.policy_gradient import ascend, mean_kl, policy_gradient
from tether.control.rollout import Rollout
from tether.learning.config import When
from tether.learning.learner import Metrics, State

Array = Any


class ReinforceConfig(CriticConfig):
    """Settings of REINFORCE; those of the critic matter only with the baseline."""

    applies: ClassVar[dict[str, When]] = {
        name: When("weight", "baseline")
        for name in ("critic_epochs", "critic_minibatch_size", "critic_learning_rate")
    }

    weight: Literal["return", "reward-to-go", "baseline"] = "reward-to-go"
    """What the gradient of log pi is multiplied by: G_0, G_t, or G_t - V(s_t); each has less
    variance than the one before."""
    num_envs: int = Field(8, ge=1)
    """Environments stepped side by side. With fewer of them each gets further into its episode."""
    steps_per_iteration: int = Field(4096, ge=1)
    """Transitions in each gradient. More of them give less variance and cut fewer episodes (usual:
    2048 to 16384)."""
    lam: float = Field(1.0, ge=1, le=1)
    """Always 1, since returns are Monte-Carlo. The method that also uses the critic's estimates is
    vpg."""
    initial_log_std: float = -0.5
    """The initial log standard deviation of every Box action. Raising it explores more."""
    learning_rate: float = Field(3e-3, gt=0)
    """Adam's initial step size for the policy (usual: 3e-4 to 1e-2)."""
    anneal: bool = True
    """Lowers the step size linearly to zero over the run."""
    normalize_weight: bool = True
    """Shifts and scales the weights of a batch to mean 0 and standard deviation 1, which amounts to
    a constant baseline."""
    max_grad_norm: float | None = Field(0.5, gt=0)
    """The largest norm of the policy's gradient; larger gradients are scaled down."""

    @property
    def with_critic(self) -> bool:
        """Whether a critic is the baseline."""
        return self.weight == "baseline"


class Reinforce(OnPolicyLearner):
    """Raise log pi(a|s) in proportion to the return that followed."""

    config: ReinforceConfig
    config_class: ClassVar[type[OnPolicyConfig]] = ReinforceConfig

    def init(self, rng: np.random.Generator) -> None:
        self.critic = Critic(rng, self.spec, self.config) if self.config.with_critic else None
        self._compiled = compiled(self.config, self.spec)
        self._moments = self._compiled.optimizer.init(self.policy.parameters)

    def update(self, rollout: Rollout) -> Metrics:
        config, data = self.config, batch(rollout)
        rate = np.float32(config.learning_rate * (1 - self.progress * config.anneal))
        value_metrics: Metrics = {}
        if self.critic is not None:
            estimate = self.critic.judge(data)
            weight = estimate.advantage
            value_metrics = self.critic.fit(data, estimate, self.rng)
        else:
            weight = self._compiled.monte_carlo(data.reward, data.done)
        self.policy.parameters, self._moments, metrics = self._compiled.step(
            self.policy.parameters, self._moments, data, weight, rate
        )
        return {
            **{name: float(value) for name, value in metrics.items()},
            **value_metrics,
            "optimizer/learning_rate": float(rate),
        }

    def method_state(self) -> State:
        return {
            "moments": moments_to_state(self._moments),
            "critic": self.critic.state() if self.critic is not None else None,
        }

    def restore_method(self, state: State) -> None:
        restored: Any = state
        self._moments = moments_from_state(self._moments, restored["moments"])
        if self.critic is not None:
            self.critic.restore(restored["critic"])


def whole_return(reward: Array, done: Array, gamma: float) -> Array:
    """G_0 of its episode on every step: (T, N) rewards and ends to (T, N) returns.

    An episode that began before the batch counts from the batch's first step.
    """
    to_go = reward_to_go(reward, done, gamma)
    first = jnp.concatenate([jnp.ones_like(done[:1]), done[:-1]])
    # Forward in time: each step repeats what its predecessor holds, but for an episode's first.
    start, repeat = jnp.where(first, to_go, 0.0), jnp.where(first, 0.0, 1.0)
    return objectives.reverse_linear_recurrence(start[::-1], repeat[::-1])[::-1]


def reward_to_go(reward: Array, done: Array, gamma: float) -> Array:
    """G_t, which ends with its episode or with the batch: (T, N) rewards and ends to (T, N)."""
    return objectives.discounted_return(reward, jnp.where(done, 0.0, jnp.float32(gamma)))


class Compiled(NamedTuple):
    """The compiled pieces of an update."""

    optimizer: optax.GradientTransformation
    monte_carlo: Callable[[Array, Array], Array]
    step: Callable[..., tuple[PolicyParameters, Any, dict[str, Array]]]


@share
def compiled(config: ReinforceConfig, spec: PolicySpec) -> Compiled:
    """REINFORCE's returns and its step for one configuration, compiled once."""
    optimizer = adam(ADAM_EPSILON, config.max_grad_norm)

    def monte_carlo(reward: Array, done: Array) -> Array:
        returns = whole_return if config.weight == "return" else reward_to_go
        return returns(reward, done, config.gamma).reshape(-1)

    def step(
        parameters: PolicyParameters, moments: Any, data: Data, weight: Array, rate: Array
    ) -> tuple[PolicyParameters, Any, dict[str, Array]]:
        if config.normalize_weight:
            weight = objectives.normalize_advantage(weight)
        gradient, metrics = policy_gradient(spec, parameters, data, weight)
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

    return Compiled(optimizer, jit(monte_carlo), jit(step))
