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

import functools
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
import optax
from jax import numpy as jnp
from pydantic import Field, model_validator

from tether import objectives
from tether.control.learner import OnPolicyConfig, OnPolicyLearner
from tether.control.networks import Network, forward, init_network
from tether.control.optimizer import adam, descend, moments_from_state, moments_to_state
from tether.control.policy import (
    PolicyParameters,
    PolicySpec,
    network_from_state,
    network_to_state,
)
from tether.control.rollout import Rollout
from tether.learning.learner import Metrics, State

Array = Any

_explained_variance = jax.jit(objectives.explained_variance)


class PPOConfig(OnPolicyConfig):
    """Settings of PPO-clip."""

    epsilon: float | None = Field(0.2, gt=0)
    """Clip range of the probability ratio; none gives the unclipped surrogate (usual: 0.1-0.3)."""
    epochs: int = Field(10, ge=1)
    """Passes over each batch. More reuse data harder and move further from the old policy."""
    minibatch_size: int = Field(64, ge=1)
    """Transitions in a gradient step (usual: 64-4096)."""
    learning_rate: float = Field(3e-4, gt=0)
    """Adam's step size for actor and critic at the start."""
    anneal: bool = True
    """Lower the step size linearly to zero over the run."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """Adam's epsilon; 1e-5 is OpenAI Baselines'."""
    max_grad_norm: float | None = Field(0.5, gt=0)
    """Largest norm of the actor's and of the critic's gradient, each on its own."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the entropy bonus. Raising it keeps the policy random for longer."""
    value_epsilon: float | None = Field(None, gt=0)
    """Clip range of the value update; none since clipping hurts (Andrychowicz et al. 2020)."""
    recompute_advantage: bool = True
    """Estimate advantages anew, with the newest critic, before every epoch."""

    @model_validator(mode="after")
    def _whole_minibatches(self) -> Self:
        if self.steps_per_iteration % self.minibatch_size:
            raise ValueError(
                f"minibatch_size={self.minibatch_size} does not divide "
                f"steps_per_iteration={self.steps_per_iteration}; expected a divisor"
            )
        return self


class Data(NamedTuple):
    """A rollout as the compiled update takes it; M = T * N transitions in flat order t * N + n."""

    observation: Array  # (M, *obs)
    action: Array  # (M, *act)
    reward: Array  # (T, N)
    terminated: Array  # (T, N)
    done: Array  # (T, N)
    last_observation: Array  # (N, *obs)
    cut_observation: Array  # (S, *obs)
    cut_index: Array  # (S,)


class Estimate(NamedTuple):
    """The critic's opinion of a rollout, each (M,)."""

    value: Array
    advantage: Array
    target: Array


class PPO(OnPolicyLearner):
    """PPO-clip on a vector environment."""

    config: PPOConfig
    config_class: ClassVar[type[OnPolicyConfig]] = PPOConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The field defaults. Against `paper`: a smaller initial standard deviation (Andrychowicz et
        # al. 2020, section 3.2) and advantages recomputed every epoch (Tianshou; Andrychowicz et
        # al., section 3.5), which together are worth a factor of three on HalfCheetah.
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
            "normalize_observation": True,
            "normalize_reward": True,
            "epsilon": 0.2,
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
        shape = self.spec.observation_space.shape
        self.critic = init_network(rng, shape, self.config.hidden, 1, output_gain=1.0)
        self.actor = self.policy.parameters
        self._compiled = compiled(self.config, self.spec)
        self._actor_moments = self._compiled.optimizer.init(self.actor)
        self._critic_moments = self._compiled.optimizer.init(self.critic)
        self._critic_thread = ThreadPoolExecutor(1, "critic")

    def update(self, rollout: Rollout) -> Metrics:
        config = self.config
        rate = np.float32(config.learning_rate * (1 - self.progress * config.anneal))
        data = batch(rollout)
        actor_order, critic_order = self._minibatches(), self._minibatches()
        estimates: list[Future[Estimate]] = [Future() for _ in range(config.epochs)]
        critic = self._critic_thread.submit(
            self._update_critic, data, critic_order, rate, estimates
        )
        actor_metrics = self._update_actor(data, actor_order, rate, estimates)
        critic_metrics = critic.result()
        self.policy.parameters = self.actor
        return {**actor_metrics, **critic_metrics, "optimizer/learning_rate": float(rate)}

    def method_state(self) -> State:
        return {
            "critic": network_to_state(self.critic),
            "actor_moments": moments_to_state(self._actor_moments),
            "critic_moments": moments_to_state(self._critic_moments),
        }

    def restore_method(self, state: State) -> None:
        restored: Any = state
        self.actor = self.policy.parameters
        self.critic = network_from_state(restored["critic"])
        self._actor_moments = moments_from_state(self._actor_moments, restored["actor_moments"])
        self._critic_moments = moments_from_state(self._critic_moments, restored["critic_moments"])

    def close(self) -> None:
        self._critic_thread.shutdown()
        super().close()

    def _minibatches(self) -> np.ndarray:
        """Orders of the transitions, one row of minibatches per epoch, (K, M / B, B)."""
        config = self.config
        # NumPy's permutation of 2048 takes 50 us; JAX's, which sorts, took 40 % of the update.
        order = [self.rng.permutation(config.steps_per_iteration) for _ in range(config.epochs)]
        return np.asarray(order, np.int32).reshape(config.epochs, -1, config.minibatch_size)

    def _update_actor(
        self, data: Data, order: np.ndarray, rate: np.float32, estimates: list[Future[Estimate]]
    ) -> Metrics:
        step = self._compiled
        old_log_prob, first_ratio = step.old_log_prob(self.actor, data, order[0])
        for epoch in range(self.config.epochs):
            advantage = estimates[epoch].result().advantage
            self.actor, self._actor_moments, metrics = step.actor_epoch(
                self.actor, self._actor_moments, data, old_log_prob, advantage, order[epoch], rate
            )
            metrics = jax.block_until_ready(metrics)  # type: ignore[no-untyped-call]
        diagnostics = {name: float(value) for name, value in metrics.items()}
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
        explained = _explained_variance(first.value, first.target)
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
    critic_epoch: Callable[..., tuple[Network, Any, dict[str, Array]]]


def compiled(config: PPOConfig, spec: PolicySpec) -> Compiled:
    """PPO's estimate and its actor and critic epochs for one configuration, compiled once."""
    with _COMPILING:
        return _compiled(config, json.dumps(spec.to_json()))


# Several seeds start at the same moment, and each would compile the same functions.
_COMPILING = threading.Lock()


@functools.lru_cache(maxsize=32)
def _compiled(config: PPOConfig, spec_json: str) -> Compiled:
    # Spaces cannot be hashed, their JSON can.
    spec = PolicySpec.from_json(json.loads(spec_json))
    optimizer = adam(config.adam_epsilon, config.max_grad_norm)

    def estimate(critic: Network, data: Data) -> Estimate:
        value = forward(critic, data.observation)[:, 0]
        last = forward(critic, data.last_observation)[:, 0]
        cut = forward(critic, data.cut_observation)[:, 0]
        follows = jnp.concatenate([value[last.shape[0] :], last])
        follows = follows.at[data.cut_index].set(cut, mode="drop")
        shape = data.reward.shape
        advantage = objectives.gae(
            data.reward,
            value.reshape(shape),
            follows.reshape(shape),
            terminated=data.terminated,
            done=data.done,
            gamma=config.gamma,
            lam=config.lam,
        ).reshape(-1)
        return Estimate(value, advantage, advantage + value)

    def log_ratio(actor: PolicyParameters, data: Data, old: Array, rows: Array) -> Any:
        pi = spec.distribution(actor, data.observation[rows])
        return pi, pi.log_prob(data.action[rows]) - old[rows]

    def actor_loss(
        actor: PolicyParameters, data: Data, old: Array, advantage: Array, rows: Array
    ) -> tuple[Array, dict[str, Array]]:
        pi, ratio = log_ratio(actor, data, old, rows)
        if config.epsilon is None:
            objective = objectives.surrogate(ratio, advantage[rows])
        else:
            objective = objectives.clipped_surrogate(ratio, advantage[rows], config.epsilon)
        entropy = jnp.mean(pi.entropy())
        metrics = {
            "policy/objective": objective,
            "policy/entropy": entropy,
            "policy/approx_kl": jnp.mean(objectives.kl_k3(-ratio)),
            "policy/clip_fraction": objectives.clip_fraction(ratio, None, config.epsilon or 0.2),
        }
        return -objective - config.entropy_coefficient * entropy, metrics

    def critic_loss(
        critic: Network, data: Data, first: Estimate, rows: Array
    ) -> tuple[Array, dict[str, Array]]:
        value = forward(critic, data.observation[rows])[:, 0]
        target = first.target[rows]
        if config.value_epsilon is None:
            loss = objectives.value_loss(value, target)
        else:
            loss = objectives.clipped_value_loss(
                value, first.value[rows], target, config.value_epsilon
            )
        return loss, {"value/loss": loss}

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
    ) -> tuple[PolicyParameters, Any, dict[str, Array]]:
        advantage = objectives.normalize_advantage(advantage)

        def step(carry: Any, rows: Array) -> Any:
            loss = lambda p: actor_loss(p, data, old, advantage, rows)  # noqa: E731
            actor, moments, metrics, norm = descend(optimizer, loss, carry[0], carry[1], rate)
            return (actor, moments), {**metrics, "policy/gradient_norm": norm}

        (actor, moments), metrics = jax.lax.scan(step, (actor, moments), order)
        return actor, moments, jax.tree.map(jnp.mean, metrics)

    def critic_epoch(
        critic: Network, moments: Any, data: Data, first: Estimate, order: Array, rate: Array
    ) -> tuple[Network, Any, dict[str, Array]]:
        def step(carry: Any, rows: Array) -> Any:
            loss = lambda p: critic_loss(p, data, first, rows)  # noqa: E731
            critic, moments, metrics, norm = descend(optimizer, loss, carry[0], carry[1], rate)
            return (critic, moments), {**metrics, "value/gradient_norm": norm}

        (critic, moments), metrics = jax.lax.scan(step, (critic, moments), order)
        return critic, moments, jax.tree.map(jnp.mean, metrics)

    return Compiled(
        optimizer,
        jax.jit(estimate),
        jax.jit(old_log_prob),
        jax.jit(actor_epoch),
        jax.jit(critic_epoch),
    )


def batch(rollout: Rollout) -> Data:
    """A rollout's arrays, flattened over time and environments."""
    flat = rollout.reward.size
    return Data(
        observation=jnp.asarray(rollout.observation.reshape(flat, *rollout.observation.shape[2:])),
        action=jnp.asarray(rollout.action.reshape(flat, *rollout.action.shape[2:])),
        reward=jnp.asarray(rollout.reward),
        terminated=jnp.asarray(rollout.terminated),
        done=jnp.asarray(rollout.terminated | rollout.truncated),
        last_observation=jnp.asarray(rollout.last_observation),
        cut_observation=jnp.asarray(rollout.cut_observation),
        cut_index=jnp.asarray(rollout.cut_index),
    )
