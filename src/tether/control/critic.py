"""What a critic is for: it judges a rollout before the policy moves, and learns from it after.

Every on-policy method with a value network uses these functions. PPO and A2C build them into
updates of their own; VPG, TRPO and REINFORCE with a baseline own a :class:`Critic`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import optax
from jax import numpy as jnp
from pydantic import Field, model_validator

from tether import objectives
from tether.control.compilation import share
from tether.control.device import jit, on_cpu
from tether.control.learner import OnPolicyConfig
from tether.control.networks import forward
from tether.control.optimizer import adam, descend, moments_from_state, moments_to_state
from tether.control.parameters import network_from_state, network_to_state
from tether.control.policy import PolicySpec
from tether.control.rollout import Rollout
from tether.learning.learner import Metrics, State

Array = Any
Apply = Callable[[Any, Array], Array]

ADAM_EPSILON = 1e-5
"""OpenAI Baselines' for every one of its methods."""


class CriticConfig(OnPolicyConfig):
    """Settings of the methods that fit a critic to each batch by epochs of minibatches."""

    critic_epochs: int = Field(5, ge=1)
    """Passes of the critic over each batch. More fit it closer, noise included (usual: 3-80)."""
    critic_minibatch_size: int = Field(64, ge=1)
    """Transitions in a gradient step of the critic (usual: 64-1024)."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size for the critic. Raising it fits faster until it diverges (1e-4 to 3e-3)."""

    @property
    def with_critic(self) -> bool:
        """Whether there is a critic to fit."""
        return True

    @model_validator(mode="after")
    def _whole_critic_minibatches(self) -> Self:
        if self.with_critic and self.steps_per_iteration % self.critic_minibatch_size:
            raise ValueError(
                f"critic_minibatch_size={self.critic_minibatch_size} does not divide "
                f"steps_per_iteration={self.steps_per_iteration}; expected a divisor"
            )
        return self


class Data(NamedTuple):
    """A rollout as compiled updates take it; M = T * N transitions in flat order t * N + n."""

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


def batch(rollout: Rollout) -> Data:
    """A rollout's arrays, flattened over time and environments."""
    flat, observation, action = rollout.reward.size, rollout.observation, rollout.action
    with on_cpu():
        return Data(
            observation=jnp.asarray(observation.reshape(flat, *observation.shape[2:])),
            action=jnp.asarray(action.reshape(flat, *action.shape[2:])),
            reward=jnp.asarray(rollout.reward),
            terminated=jnp.asarray(rollout.terminated),
            done=jnp.asarray(rollout.terminated | rollout.truncated),
            last_observation=jnp.asarray(rollout.last_observation),
            cut_observation=jnp.asarray(rollout.cut_observation),
            cut_index=jnp.asarray(rollout.cut_index),
        )


def estimate(critic: Any, data: Data, gamma: float, lam: float, apply: Apply = forward) -> Estimate:
    """Values, advantages and targets of a rollout by GAE; see :func:`tether.objectives.gae`.

    A time limit and the end of the batch are worth what the critic says of the observation that
    truly followed; a termination is worth nothing. `apply` is the critic's forward pass.
    """
    value = apply(critic, data.observation)[:, 0]
    last = apply(critic, data.last_observation)[:, 0]
    cut = apply(critic, data.cut_observation)[:, 0]
    follows = jnp.concatenate([value[last.shape[0] :], last])
    follows = follows.at[data.cut_index].set(cut, mode="drop")
    shape = data.reward.shape
    advantage = objectives.gae(
        data.reward,
        value.reshape(shape),
        follows.reshape(shape),
        terminated=data.terminated,
        done=data.done,
        gamma=gamma,
        lam=lam,
    ).reshape(-1)
    return Estimate(value, advantage, advantage + value)


def fit_epoch(
    optimizer: optax.GradientTransformation,
    critic: Any,
    moments: Any,
    data: Data,
    first: Estimate,
    order: Array,
    rate: Array,
    value_epsilon: float | None = None,
    apply: Apply = forward,
) -> tuple[Any, Any, dict[str, Array]]:
    """One pass of a critic over a batch, down the squared error to its targets.

    Args:
        optimizer: as :func:`tether.control.optimizer.adam` makes it.
        critic: the value network.
        moments: the optimizer's.
        data: the batch.
        first: the estimate whose targets are to be met.
        order: rows of minibatches, (M / B, B).
        rate: step size.
        value_epsilon: how far a value may move from `first`, or None.
        apply: the critic's forward pass.

    Returns:
        Network, moments, and metrics averaged over the minibatches.
    """

    def loss(critic: Any, rows: Array) -> tuple[Array, dict[str, Array]]:
        value = apply(critic, data.observation[rows])[:, 0]
        target = first.target[rows]
        if value_epsilon is None:
            error = objectives.value_loss(value, target)
        else:
            error = objectives.clipped_value_loss(value, first.value[rows], target, value_epsilon)
        return error, {"value/loss": error}

    def step(carry: Any, rows: Array) -> Any:
        critic, moments, metrics, norm = descend(
            optimizer, lambda critic: loss(critic, rows), carry[0], carry[1], rate
        )
        return (critic, moments), {**metrics, "value/gradient_norm": norm}

    (critic, moments), metrics = jax.lax.scan(step, (critic, moments), order)
    return critic, moments, jax.tree.map(jnp.mean, metrics)


def minibatches(rng: np.random.Generator, epochs: int, total: int, size: int) -> np.ndarray:
    """Shuffled orders of `total` transitions, (epochs, total / size, size).

    NumPy's permutation of 2048 takes 50 us; JAX's, which sorts, took 40 % of PPO's update.
    """
    order = [rng.permutation(total) for _ in range(epochs)]
    return np.asarray(order, np.int32).reshape(epochs, -1, size)


class Critic:
    """A value network, its optimizer, and both of its duties, compiled."""

    def __init__(self, rng: np.random.Generator, spec: PolicySpec, config: CriticConfig) -> None:
        self.config = config
        self.network = spec.init_network(rng, 1, output_gain=1.0)
        self._compiled = _compiled(config, spec)
        self._moments = self._compiled.optimizer.init(self.network)

    def judge(self, data: Data) -> Estimate:
        """Values, advantages and targets of a batch, before anything learns from it."""
        return self._compiled.estimate(self.network, data)

    def fit(self, data: Data, estimate: Estimate, rng: np.random.Generator) -> Metrics:
        """Learn the targets of `estimate` by epochs of shuffled minibatches; `rng` shuffles."""
        config = self.config
        total, size = config.steps_per_iteration, config.critic_minibatch_size
        rate = np.float32(config.critic_learning_rate)
        for order in minibatches(rng, config.critic_epochs, total, size):
            self.network, self._moments, metrics = self._compiled.epoch(
                self.network, self._moments, data, estimate, order, rate
            )
        explained = explained_variance(estimate.value, estimate.target)
        return {
            **{name: float(value) for name, value in metrics.items()},
            "value/explained_variance": float(explained),
        }

    def state(self) -> State:
        """Network and moments as nested dictionaries of arrays."""
        return {
            "network": network_to_state(self.network),
            "moments": moments_to_state(self._moments),
        }

    def restore(self, state: Any) -> None:
        """Undo :meth:`state`."""
        self.network = network_from_state(state["network"], self.network)
        self._moments = moments_from_state(self._moments, state["moments"])


explained_variance = jit(objectives.explained_variance)


class _Compiled(NamedTuple):
    optimizer: optax.GradientTransformation
    estimate: Callable[[Any, Data], Estimate]
    epoch: Callable[..., tuple[Any, Any, dict[str, Array]]]


@share
def _compiled(config: CriticConfig, spec: PolicySpec) -> _Compiled:
    optimizer = adam(ADAM_EPSILON, None)

    apply = spec.network.apply

    def judge(critic: Any, data: Data) -> Estimate:
        return estimate(critic, data, config.gamma, config.lam, apply)

    def epoch(
        critic: Any, moments: Any, data: Data, first: Estimate, order: Array, rate: Array
    ) -> tuple[Any, Any, dict[str, Array]]:
        return fit_epoch(optimizer, critic, moments, data, first, order, rate, apply=apply)

    return _Compiled(optimizer, jit(judge), jit(epoch))
