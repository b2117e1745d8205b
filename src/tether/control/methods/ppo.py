"""Proximal policy optimization with the clipped objective (Schulman et al. 2017, 1707.06347).

    for each iteration:
        collect partial trajectories with pi_old
        estimate advantages with GAE
        K epochs of minibatch Adam on  E[min(r A, clip(r, 1 - eps, 1 + eps) A)]

The actor and the critic share nothing, so their updates run side by side on two threads. With
`recompute_advantage` the critic's newest values give the advantages of every epoch; the actor's
epoch k then waits for the critic's epoch k - 1, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
import optax
from jax import numpy as jnp
from pydantic import Field, model_validator

from tether import objectives
from tether.control.compilation import share
from tether.control.critic import (
    Data,
    Estimate,
    batch,
    estimate,
    explained_variance,
    fit_epoch,
    minibatches,
)
from tether.control.device import jit
from tether.control.distributions import Distribution
from tether.control.learner import NO_SAFEGUARDS, OnPolicyConfig, OnPolicyLearner
from tether.control.optimizer import adam, descend, moments_from_state, moments_to_state
from tether.control.parameters import PolicyParameters, network_from_state, network_to_state
from tether.control.policy import PolicySpec
from tether.control.rollout import Rollout
from tether.learning.learner import Metrics, State

Array = Any


class ProximalConfig(OnPolicyConfig):
    """Settings of every PPO, whatever keeps its policy near the old one."""

    gamma: float = Field(0.99, ge=0, le=1)
    """The discount factor. Raising it looks further ahead and adds variance (usual: 0.98 to 0.999;
    0.998 suits tasks that never terminate)."""
    lam: float = Field(0.97, ge=0, le=1)
    """GAE's lambda. 1 gives the Monte-Carlo advantage, 0 the one-step TD error (usual: 0.9 to
    0.98)."""
    initial_log_std: float = -0.5
    """The initial log standard deviation of every Box action. Raising it explores more."""
    epochs: int = Field(10, ge=1)
    """Passes over each batch. More passes reuse the data more and move further from the old
    policy."""
    minibatch_size: int = Field(64, ge=1)
    """Transitions in a gradient step (usual: 64 to 4096)."""
    learning_rate: float = Field(3e-4, gt=0)
    """Adam's initial step size for actor and critic."""
    anneal: bool = True
    """Lowers the step size linearly to zero over the run."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """Adam's epsilon; OpenAI Baselines uses 1e-5."""
    max_grad_norm: float | None = Field(0.5, gt=0)
    """The largest norm of the actor's and of the critic's gradient, each by itself; larger
    gradients are scaled down."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """The weight of the entropy bonus. Raising it keeps the policy random for longer."""
    value_epsilon: float | None = Field(None, gt=0)
    """The clip range of the value update; none by default, since clipping it hurts (Andrychowicz et
    al. 2020)."""
    recompute_advantage: bool = True
    """Estimates the advantages again, with the newest critic, before every epoch."""

    @model_validator(mode="after")
    def _whole_minibatches(self) -> Self:
        if self.steps_per_iteration % self.minibatch_size:
            raise ValueError(
                f"minibatch_size={self.minibatch_size} does not divide "
                f"steps_per_iteration={self.steps_per_iteration}; expected a divisor"
            )
        return self


class PPOConfig(ProximalConfig):
    """Settings of PPO-clip."""

    epsilon: float | None = Field(0.2, gt=0)
    """The clip range of the probability ratio; none gives the unclipped surrogate (usual: 0.1 to
    0.3)."""
    target_kl: float | None = Field(None, gt=0)
    """Stop an iteration's epochs of the policy after one whose `policy/approx_kl` exceeds 1.5 times
    this, in nats (the factor is Stable-Baselines3's; usual: 0.01-0.05); none takes all epochs."""


class Minibatch(NamedTuple):
    """What an objective sees of B transitions, `rows` of the batch."""

    pi: Distribution
    log_ratio: Array  # (B,)
    advantage: Array  # (B,)
    rows: Array  # (B,)


def clipped(
    config: PPOConfig, spec: PolicySpec, seen: Minibatch, old_policy: None
) -> tuple[Array, dict[str, Array]]:
    """E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)], or E[r A] where epsilon is none."""
    log_ratio = seen.log_ratio
    if config.epsilon is None:
        objective = objectives.surrogate(log_ratio, seen.advantage)
    else:
        objective = objectives.clipped_surrogate(log_ratio, seen.advantage, config.epsilon)
    fraction = objectives.clip_fraction(log_ratio, None, config.epsilon or 0.2)
    return objective, {"policy/clip_fraction": fraction}


class PPO(OnPolicyLearner):
    """PPO-clip on a vector environment.

    Another PPO overrides `objective`, which is compiled into the update, and, where its objective
    needs to know the old policy, `old_policy` before the update and `adapt` after it.
    """

    config: ProximalConfig
    config_class: ClassVar[type[OnPolicyConfig]] = PPOConfig
    objective: ClassVar[Callable[..., tuple[Array, dict[str, Array]]]] = staticmethod(clipped)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The field defaults. Against `paper`: advantages recomputed every epoch (Tianshou;
        # Andrychowicz et al. 2020, section 3.5), a smaller initial standard deviation (section 3.2
        # there; docs/gaits.md says what a greater one does to HalfCheetah), and a greater lambda.
        "default": {},
        # Schulman et al. 2017, table 3, with the normalization, annealing and gradient clipping of
        # OpenAI Baselines' ppo2 for MuJoCo. The paper's horizon of 2048 transitions is collected by
        # 32 environments at once. Every field stands here, so no change of a default moves it.
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
            "epsilon": 0.2,
            "target_kl": None,
            "epochs": 10,
            "minibatch_size": 64,
            "learning_rate": 3e-4,
            "anneal": True,
            "adam_epsilon": 1e-5,
            "max_grad_norm": 0.5,
            "entropy_coefficient": 0.0,
            "value_epsilon": None,
            "recompute_advantage": False,
        },
    }

    def init(self, rng: np.random.Generator) -> None:
        self.critic = self.spec.init_network(rng, 1, output_gain=1.0)
        self.actor = self.policy.parameters
        self._compiled = compiled(self.config, self.spec, type(self).objective)
        self._actor_moments = self._compiled.optimizer.init(self.actor)
        self._critic_moments = self._compiled.optimizer.init(self.critic)
        self._critic_thread = ThreadPoolExecutor(1, "critic")

    def update(self, rollout: Rollout) -> Metrics:
        config = self.config
        rate = np.float32(config.learning_rate * (1 - self.progress * config.anneal))
        data = batch(rollout)
        old_policy = self.old_policy(data)
        actor_order, critic_order = self._minibatches(), self._minibatches()
        estimates: list[Future[Estimate]] = [Future() for _ in range(config.epochs)]
        critic = self._critic_thread.submit(
            self._update_critic, data, critic_order, rate, estimates
        )
        actor_metrics = self._update_actor(data, actor_order, rate, estimates, old_policy)
        critic_metrics = critic.result()
        self.policy.parameters = self.actor
        return {
            **actor_metrics,
            **critic_metrics,
            "optimizer/learning_rate": float(rate),
            **self.adapt(data, old_policy),
        }

    @property
    def largest_kl(self) -> float | None:
        """The approximate KL divergence of an epoch after which no other follows, or None."""
        target = getattr(self.config, "target_kl", None)
        return None if target is None else 1.5 * target

    def old_policy(self, data: Data) -> Any:
        """What `objective` needs to know of the old policy; arrays, or None."""
        return None

    def adapt(self, data: Data, old_policy: Any) -> Metrics:
        """Adapts the settings that follow the policy's step, and measures it."""
        return {}

    def method_state(self) -> State:
        return {
            "critic": network_to_state(self.critic),
            "actor_moments": moments_to_state(self._actor_moments),
            "critic_moments": moments_to_state(self._critic_moments),
        }

    def restore_method(self, state: State) -> None:
        restored: Any = state
        self.actor = self.policy.parameters
        self.critic = network_from_state(restored["critic"], self.critic)
        self._actor_moments = moments_from_state(self._actor_moments, restored["actor_moments"])
        self._critic_moments = moments_from_state(self._critic_moments, restored["critic_moments"])

    def close(self) -> None:
        self._critic_thread.shutdown()
        super().close()

    def _minibatches(self) -> np.ndarray:
        """Orders of the transitions, one row of minibatches per epoch, (K, M / B, B)."""
        config = self.config
        return minibatches(
            self.rng, config.epochs, config.steps_per_iteration, config.minibatch_size
        )

    def _update_actor(
        self,
        data: Data,
        order: np.ndarray,
        rate: np.float32,
        estimates: list[Future[Estimate]],
        old_policy: Any,
    ) -> Metrics:
        step, limit = self._compiled, self.largest_kl
        old_log_prob, first_ratio = step.old_log_prob(self.actor, data, order[0])
        for epoch in range(self.config.epochs):
            advantage = estimates[epoch].result().advantage
            self.actor, self._actor_moments, metrics = step.actor_epoch(
                self.actor,
                self._actor_moments,
                data,
                old_log_prob,
                advantage,
                order[epoch],
                rate,
                old_policy,
            )
            metrics = jax.block_until_ready(metrics)  # type: ignore[no-untyped-call]
            # The critic has a loss of its own, so its epochs go on, as in Spinning Up.
            if limit is not None and float(metrics["policy/approx_kl"]) > limit:
                break
        diagnostics = {name: float(value) for name, value in metrics.items()}
        if limit is not None:
            diagnostics["policy/epochs"] = epoch + 1
        return {**diagnostics, "policy/first_ratio": float(first_ratio)}

    def _update_critic(
        self, data: Data, order: np.ndarray, rate: np.float32, estimates: list[Future[Estimate]]
    ) -> Metrics:
        step = self._compiled
        try:
            for epoch, waiting in enumerate(estimates):
                if epoch == 0:
                    estimate = first = step.estimate(self.critic, data)
                elif self.config.recompute_advantage:
                    estimate = step.estimate(self.critic, data)
                waiting.set_result(estimate)
                self.critic, self._critic_moments, metrics = step.critic_epoch(
                    self.critic, self._critic_moments, data, estimate, order[epoch], rate
                )
                metrics = jax.block_until_ready(metrics)  # type: ignore[no-untyped-call]
        except BaseException as error:
            for waiting in estimates:
                if not waiting.done():
                    waiting.set_exception(error)
            raise
        explained = explained_variance(first.value, first.target)
        return {
            **{name: float(value) for name, value in metrics.items()},
            "value/explained_variance": float(explained),
        }


class Compiled(NamedTuple):
    """The compiled pieces of an update, shared by every learner with the same settings."""

    optimizer: optax.GradientTransformation
    estimate: Callable[..., Estimate]
    old_log_prob: Callable[..., tuple[Array, Array]]
    actor_epoch: Callable[..., tuple[PolicyParameters, Any, dict[str, Array]]]
    critic_epoch: Callable[..., tuple[Any, Any, dict[str, Array]]]


@share
def compiled(
    config: ProximalConfig,
    spec: PolicySpec,
    objective: Callable[..., tuple[Array, dict[str, Array]]] = clipped,
) -> Compiled:
    """PPO's estimate and its actor and critic epochs for one configuration, compiled once."""
    optimizer = adam(config.adam_epsilon, config.max_grad_norm)

    def judge(critic: Any, data: Data) -> Estimate:
        return estimate(critic, data, config.gamma, config.lam, spec.network.apply)

    def log_ratio(actor: PolicyParameters, data: Data, old: Array, rows: Array) -> Any:
        pi = spec.distribution(actor, data.observation[rows])
        return pi, pi.log_prob(data.action[rows]) - old[rows]

    def actor_loss(
        actor: PolicyParameters,
        data: Data,
        old: Array,
        advantage: Array,
        rows: Array,
        old_policy: Any,
    ) -> tuple[Array, dict[str, Array]]:
        pi, ratio = log_ratio(actor, data, old, rows)
        gain, metrics = objective(
            config, spec, Minibatch(pi, ratio, advantage[rows], rows), old_policy
        )
        entropy = jnp.mean(pi.entropy())
        metrics = {
            "policy/objective": gain,
            "policy/entropy": entropy,
            "policy/approx_kl": jnp.mean(objectives.kl_k3(-ratio)),
            **metrics,
        }
        return -gain - config.entropy_coefficient * entropy, metrics

    def old_log_prob(actor: PolicyParameters, data: Data, order: Array) -> tuple[Array, Array]:
        # In the first epoch's own minibatches, so that its first ratio is 1 to the last bit: the
        # same rows in the same matrix product.
        total = data.action.shape[0]
        zero = jnp.zeros(total)
        rows = jax.lax.map(lambda rows: log_ratio(actor, data, zero, rows)[1], order)
        old = zero.at[order.reshape(-1)].set(rows.reshape(-1))
        first = jnp.exp(log_ratio(actor, data, old, order[0])[1])
        return old, first[jnp.argmax(jnp.abs(first - 1))]

    def actor_epoch(
        actor: PolicyParameters,
        moments: Any,
        data: Data,
        old: Array,
        advantage: Array,
        order: Array,
        rate: Array,
        old_policy: Any = None,
    ) -> tuple[PolicyParameters, Any, dict[str, Array]]:
        advantage = objectives.normalize_advantage(advantage)

        def step(carry: Any, rows: Array) -> Any:
            loss = lambda p: actor_loss(p, data, old, advantage, rows, old_policy)  # noqa: E731
            actor, moments, metrics, norm = descend(optimizer, loss, carry[0], carry[1], rate)
            return (actor, moments), {**metrics, "policy/gradient_norm": norm}

        (actor, moments), metrics = jax.lax.scan(step, (actor, moments), order)
        return actor, moments, jax.tree.map(jnp.mean, metrics)

    def critic_epoch(
        critic: Any, moments: Any, data: Data, first: Estimate, order: Array, rate: Array
    ) -> tuple[Any, Any, dict[str, Array]]:
        clip = config.value_epsilon
        apply = spec.network.apply
        return fit_epoch(optimizer, critic, moments, data, first, order, rate, clip, apply)

    return Compiled(
        optimizer,
        jit(judge),
        jit(old_log_prob),
        jit(actor_epoch),
        jit(critic_epoch),
    )
