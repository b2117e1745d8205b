"""Actor-critic with a critic of actions, one update per step: the lecture's Algorithm 3.

    initialize pi_theta(a|s) and Q_phi(s, a)                              lines 1-2
    for each step of each episode, from state s:
        choose a ~ pi_theta(.|s), observe r and s'                        6, 7
        choose a' ~ pi_theta(.|s')                                        8
        delta = r + gamma Q_phi(s', a') - Q_phi(s, a)                     9
        phi   <- phi + alpha_c delta grad_phi Q_phi(s, a)                 10-11
        theta <- theta + alpha_a grad_theta log pi_theta(a|s) Q_phi(s, a) 12-15
        s     <- s'                                                       16

Taken at its word: plain steps without momentum; the critic moves first, so line 13 sees the phi
that line 11 left; a' only measures, and the next step chooses its action anew. Lines 8 to 15, and
line 6 of the step that follows, are one compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from jax import numpy as jnp
from pydantic import Field, PositiveInt, model_validator

from tether import objectives
from tether.control.architectures import check_network
from tether.control.compilation import share
from tether.control.device import jit
from tether.control.envs import Step
from tether.control.networks import Network, encode, forward, init_network
from tether.control.parameters import PolicyParameters, network_from_state, network_to_state
from tether.control.policy import PolicySpec
from tether.control.policy_learner import PolicyConfig, PolicyLearner, check_finite
from tether.errors import BadEnvironmentError, UserError
from tether.learning.learner import Metrics, State

Array = Any


class ActorCriticConfig(PolicyConfig):
    """Settings of the actor-critic."""

    num_envs: int = Field(1, ge=1)
    """Environments stepped side by side. 1 is the lecture's algorithm; with more, each update
    averages over their steps."""
    steps_per_iteration: int = Field(1000, ge=1)
    """Environment steps between two lines of metrics. Every one of them makes an update."""
    gamma: float = Field(0.99, ge=0, le=1)
    """The discount factor. Raising it looks further ahead and adds variance (usual: 0.98 to
    0.999)."""
    actor_learning_rate: float = Field(1e-4, gt=0)
    """The lecture's alpha_a. It multiplies Q, so it should be small where returns are large (usual:
    1e-5 to 1e-2)."""
    critic_learning_rate: float = Field(3e-3, gt=0)
    """The lecture's alpha_c. It should be above alpha_a, so that Q follows the policy (usual: 1e-3
    to 1e-1)."""
    hidden: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of Q, which are separate networks."""
    normalize_observation: bool = False
    """Normalizes observations by their running statistics, which the lecture's algorithm
    does not."""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.steps_per_iteration % self.num_envs:
            raise ValueError(
                f"steps_per_iteration={self.steps_per_iteration} is not a multiple of "
                f"num_envs={self.num_envs}; expected a multiple"
            )
        return self


class Transition(NamedTuple):
    """One step of N environments, as the compiled update takes it."""

    observation: Array  # (N, *obs)
    action: Array  # (N, *act), unclipped
    reward: Array  # (N,)
    discount: Array  # (N,), gamma, and 0 where the episode terminated
    next_observation: Array  # (N, *obs), the true s': at a time limit the one before the reset


class Compiled(NamedTuple):
    """The compiled pieces, shared by every learner with the same settings."""

    act: Callable[..., Array]
    update: Callable[..., tuple[PolicyParameters, Any, Array, Array]]


class ActorCritic(PolicyLearner):
    """A policy and Q of its actions, each moved at every step."""

    config: ActorCriticConfig
    config_class: ClassVar[type[PolicyConfig]] = ActorCriticConfig

    @classmethod
    def environments(cls, config: Any) -> int:
        return int(config.num_envs)

    def _begin(self, seeds: Sequence[int], weights: np.random.Generator) -> None:
        self.critic = init_critic(weights, self.spec, self.config.hidden)
        self.actor = self.policy.parameters
        self._compiled = compiled(self.config, self.spec)
        self._steps = 0
        self._returns = np.zeros(self.env.num_envs)
        self._true_returns = np.zeros(self.env.num_envs)
        self._lengths = np.zeros(self.env.num_envs, np.int64)
        self._observation = self.env.reset(seeds).copy()

    @property
    def steps(self) -> int:
        return self._steps

    def iterate(self) -> Metrics:
        """`steps_per_iteration` steps of the environments, with an update at each."""
        policy, head, count = self.policy, self.spec.head, self.env.num_envs
        horizon = self.config.steps_per_iteration // count
        noise = head.noise(self._acting, (horizon, 2, count))
        seen = np.array(policy.normalize(self._observation))
        self._check("observation", self._observation)
        action = self._compiled.act(self.actor, seen, head.noise(self._acting, (count,)))
        raw, measured = [], []
        for t in range(horizon):
            if policy.normalizer is not None:
                raw.append(self._observation.copy())
            step = self.env.step(head.to_environment(np.asarray(action)))
            self._check("reward", step.reward)
            self._check("observation", step.observation)
            self._check("observation", step.final_observation)
            # Copied, for the environment writes its next observation into the same array.
            after = np.array(policy.normalize(step.observation))
            truly = after
            if step.final_observation is not step.observation:
                truly = np.array(policy.normalize(step.final_observation))
            going = self.config.gamma * ~step.terminated
            transition = Transition(seen, action, np.float32(step.reward), np.float32(going), truly)
            self.actor, self.critic, action, numbers = self._compiled.update(
                self.actor, self.critic, transition, after, noise[t]
            )
            measured.append(self._measure(numbers, action))
            seen, self._observation = after, step.observation
            self._count(step)
        self._observation = self._observation.copy()
        policy.parameters = self.actor
        if policy.normalizer is not None:
            policy.normalizer.update(np.concatenate(raw))
        squared, q, entropy = np.mean(measured, axis=0).tolist()
        return {
            **self._episodes.metrics(),
            "value/loss": squared / 2,
            "value/q": q,
            "policy/entropy": entropy,
        }

    def state(self) -> State:
        return {
            "policy": self.policy.state(),
            "critic": network_to_state(self.critic),
            "env": self.env.state(),
            "steps": self._steps,
            "returns": self._returns.copy(),
            "true_returns": self._true_returns.copy(),
            "lengths": self._lengths.copy(),
            **self._random_state(),
            **self._episodes.state(),
        }

    def restore(self, state: State) -> None:
        restored: Any = state
        self._take_policy(restored["policy"])
        self.actor = self.policy.parameters
        self.critic = network_from_state(restored["critic"], self.critic)
        self._observation = self.env.restore(restored["env"]).copy()
        self._steps = int(restored["steps"])
        self._returns = np.array(restored["returns"])
        self._true_returns = np.array(restored.get("true_returns", np.zeros_like(self._returns)))
        self._lengths = np.array(restored["lengths"])
        self._restore_random(restored)
        self._episodes.restore(restored)

    def _count(self, step: Step) -> None:
        self._returns += step.reward
        truth = step.true_reward
        if truth is not None:
            self._true_returns += truth
        self._lengths += 1
        self._steps += self.env.num_envs
        ended = np.flatnonzero(step.terminated | step.truncated)
        if len(ended):
            self._episodes.extend(
                self._returns[ended].tolist(),
                self._lengths[ended].tolist(),
                None if truth is None else self._true_returns[ended].tolist(),
                [step.statistics.get(n, {}) for n in ended.tolist()],
            )
            self._returns[ended], self._lengths[ended] = 0.0, 0
            self._true_returns[ended] = 0.0

    def _check(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            value = array[~np.isfinite(array)].ravel()[0]
            raise BadEnvironmentError(
                f"{self.env.id} returned {value} in its {name} at step {self._steps}; training "
                "stopped before learning from it"
            )

    def _measure(self, numbers: Array, action: Array) -> np.ndarray:
        """The step's numbers; raises before an action that is not finite reaches the physics."""
        array = np.asarray(numbers)
        if not (np.isfinite(array).all() and np.isfinite(np.asarray(action)).all()):
            names = ("value/loss", "value/q", "policy/entropy")
            check_finite(dict(zip(names, array.tolist(), strict=True)), self._steps)
            check_finite({"the action": float("nan")}, self._steps)
        return array


def init_critic(rng: np.random.Generator, spec: PolicySpec, hidden: tuple[int, ...]) -> Any:
    """A fresh Q: for one Discrete action Q(s, .), a number for each choice; else Q(s, a), one."""
    shape = spec.observation_space.shape
    if len(spec.head.sizes) == 1:
        return spec.init_network(rng, spec.head.outputs, output_gain=1.0)
    if spec.own_network is not None:
        if len(shape) == 3:
            raise UserError(
                "actor-critic joins observations and actions, which a given network can do for "
                "vectors only; give image observations a Discrete action, or leave network= out"
            )
        joined = (shape[0] + spec.head.outputs,)
        check_network(spec.own_network, joined, np.float32, 1)
        return spec.own_network.init(rng, joined, 1, 1.0)
    eyes = init_network(rng, shape, (), 1, output_gain=1.0)
    width = eyes.dense[0].weight.shape[0] + spec.head.outputs
    judge = init_network(rng, (width,), hidden, 1, output_gain=1.0)
    return Network(eyes.convolutions, judge.dense)


def action_value(spec: PolicySpec, critic: Any, observation: Array, action: Array) -> Array:
    """Q_phi(s, a), (N,), of normalized observations and of actions as the policy chose them."""
    head = spec.head
    if len(head.sizes) == 1:
        chosen = jnp.arange(head.outputs) == action
        return jnp.sum(jnp.where(chosen, spec.network.apply(critic, observation), 0.0), axis=-1)
    if head.sizes:
        columns = [jnp.arange(n) == action[:, i : i + 1] for i, n in enumerate(head.sizes)]
        action = jnp.concatenate(columns, axis=-1)
    action = action.astype(jnp.float32)
    if spec.own_network is not None:
        joined = jnp.concatenate([observation, action], axis=-1)
        value: Array = spec.own_network.apply(critic, joined)
        return value[:, 0]
    features = encode(critic.convolutions, observation) if critic.convolutions else observation
    joined = jnp.concatenate([features, action], axis=-1)
    return forward(Network((), critic.dense), joined, spec.activation)[:, 0]


@share
def compiled(config: ActorCriticConfig, spec: PolicySpec) -> Compiled:
    """Acting, and lines 8 to 15 with the next line 6, for one configuration."""

    def act(actor: PolicyParameters, observation: Array, noise: Array) -> Array:
        return spec.distribution(actor, observation).sample(noise)

    def update(
        actor: PolicyParameters, critic: Any, seen: Transition, after: Array, noise: Array
    ) -> tuple[PolicyParameters, Any, Array, Array]:
        s, a = seen.observation, seen.action
        q = action_value(spec, critic, s, a)
        next_action = act(actor, seen.next_observation, noise[0])
        next_q = action_value(spec, critic, seen.next_observation, next_action)
        delta = objectives.td_error(seen.reward, q, next_q, seen.discount)
        uphill = jax.grad(lambda phi: jnp.mean(delta * action_value(spec, phi, s, a)))(critic)
        critic = ascend(critic, uphill, config.critic_learning_rate)

        weight = action_value(spec, critic, s, a)

        def objective(theta: PolicyParameters) -> Array:
            return objectives.policy_gradient(spec.distribution(theta, s).log_prob(a), weight)

        actor = ascend(actor, jax.grad(objective)(actor), config.actor_learning_rate)
        pi = spec.distribution(actor, after)
        numbers = jnp.stack([jnp.mean(delta**2), jnp.mean(q), jnp.mean(pi.entropy())])
        return actor, critic, pi.sample(noise[1]), numbers

    return Compiled(jit(act), jit(update))


def ascend(parameters: Any, gradient: Any, rate: float) -> Any:
    """Take a plain step of `rate` up a gradient, leaf by leaf."""
    return jax.tree.map(lambda p, g: p + rate * g, parameters, gradient)
