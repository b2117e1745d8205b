"""Trust region policy optimization (Schulman et al. 2015, 1502.05477).

    for each iteration:
        collect partial trajectories with pi_old
        estimate advantages A with GAE
        g = grad E[r A]                                   r = pi_theta(a|s) / pi_old(a|s)
        x = H^-1 g by conjugate gradients                 H = hessian E[KL(pi_old || pi_theta)]
        s = sqrt(2 delta / x^T H x) x
        theta <- theta + c^j s, the first j at which E[r A] rises enough and E[KL] <= delta
        fit the critic to A + V

The Hessian at pi_old is the Fisher matrix. It is only ever multiplied with a vector, by
differentiating the gradient of the KL divergence along it: two passes, no matrix. If no candidate
keeps both promises the policy stays exactly where it was, and `trust_region/failures` counts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree
from pydantic import Field

from tether import objectives
from tether.control.compilation import share
from tether.control.critic import Critic, CriticConfig, Data, batch
from tether.control.device import jit
from tether.control.learner import NO_SAFEGUARDS, OnPolicyConfig, OnPolicyLearner
from tether.control.parameters import PolicyParameters
from tether.control.policy import PolicySpec
from tether.control.policy_gradient import mean_kl
from tether.control.rollout import Rollout
from tether.learning.learner import Metrics, State

Array = Any


class TRPOConfig(CriticConfig):
    """Settings of TRPO."""

    num_envs: int = Field(16, ge=1)
    """Environments stepped side by side."""
    steps_per_iteration: int = Field(1024, ge=1)
    """Transitions in each update. More of them make each update better and updates fewer (usual:
    1024 to 8192)."""
    initial_log_std: float = -0.5
    """The initial log standard deviation of every Box action. Raising it explores more."""
    max_kl: float = Field(0.01, gt=0)
    """The paper's delta: the largest mean KL divergence of an update, in nats. Raising it allows
    larger updates (usual: 0.001 to 0.05)."""
    conjugate_gradient_iterations: int = Field(10, ge=1)
    """Iterations of the conjugate gradient method, each with one Fisher-vector product (usual: 10
    to 20)."""
    damping: float = Field(0.1, ge=0)
    """Added to the diagonal of the Fisher matrix. Raising it makes updates shorter and steadier."""
    fisher_every: int = Field(5, ge=1)
    """The Fisher matrix is that of one in so many transitions; 1 uses all, at more cost."""
    backtracks: int = Field(10, ge=1)
    """The number of step lengths that the line search tries, the full step first."""
    shrink: float = Field(0.8, gt=0, lt=1)
    """The factor from one step length to the next in the line search."""
    min_improvement: float = Field(3.5e-3, ge=0)
    """Rise of E[r A], in the critic's units, for each unit of the region's radius sqrt(2 max_kl)
    below which no step is taken. Raising it leaves a solved policy alone sooner (0-0.01)."""


class TRPO(OnPolicyLearner):
    """The natural gradient step that stays within a KL divergence of `max_kl`."""

    config: TRPOConfig
    config_class: ClassVar[type[OnPolicyConfig]] = TRPOConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The field defaults: those of Tianshou's MuJoCo benchmark, and a least improvement, which
        # docs/trpo.md explains.
        "default": {},
        # delta of the paper's appendix E; everything else as in OpenAI Baselines' trpo_mpi for
        # MuJoCo, by the paper's first author: batches of 50,000 to a million steps, as the paper
        # has them, would be 20 updates or one in a million steps.
        "paper": {
            "num_envs": 16,
            "steps_per_iteration": 1024,
            "gamma": 0.99,
            "lam": 0.98,
            "hidden": (32, 32),
            "initial_log_std": 0.0,
            "activation": "tanh",
            "normalize_observation": True,
            "scale_actions": False,
            "normalize_reward": False,
            "stagger": True,
            **NO_SAFEGUARDS,
            "max_kl": 0.01,
            "conjugate_gradient_iterations": 10,
            "damping": 0.1,
            "fisher_every": 5,
            "backtracks": 10,
            "shrink": 0.5,
            "min_improvement": 0.0,
            "critic_epochs": 5,
            "critic_minibatch_size": 64,
            "critic_learning_rate": 1e-3,
        },
    }

    def init(self, rng: np.random.Generator) -> None:
        self.critic = Critic(rng, self.spec, self.config)
        self.failures = 0
        self._improve = compiled(self.config, self.spec)

    def update(self, rollout: Rollout) -> Metrics:
        data = batch(rollout)
        estimate = self.critic.judge(data)
        parameters, arrays = self._improve(self.policy.parameters, data, estimate.advantage)
        metrics = {name: float(value) for name, value in arrays.items()}
        self._check(metrics["policy/kl"])
        self.policy.parameters = parameters
        self.failures += metrics["trust_region/accepted"] == 0.0
        return {
            **metrics,
            "trust_region/failures": self.failures,
            **self.critic.fit(data, estimate, self.rng),
        }

    def method_state(self) -> State:
        return {"critic": self.critic.state(), "failures": self.failures}

    def restore_method(self, state: State) -> None:
        restored: Any = state
        self.critic.restore(restored["critic"])
        self.failures = int(restored["failures"])

    def _check(self, kl: float) -> None:
        # Measured anew at the policy that comes out; the line search and this sum may differ in
        # the last bits of a float32. NaN is the learner's to report.
        if kl > self.config.max_kl * (1 + 1e-3) + 1e-6:
            raise RuntimeError(f"TRPO's step has a KL divergence of {kl} > {self.config.max_kl}")


def fisher_product(
    spec: PolicySpec, parameters: PolicyParameters, observation: Array
) -> Callable[[Array], Array]:
    """Multiplication v -> F v by the Fisher matrix of a policy over observations (M, *obs).

    F = E_s E_{a ~ pi}[grad log pi(a|s) grad log pi(a|s)^T], which is the Hessian of
    E_s[KL(pi_old(.|s) || pi_theta(.|s))] at theta = old. Vectors are the parameters in the order of
    `jax.flatten_util.ravel_pytree`, (P,).
    """
    theta, unravel = ravel_pytree(parameters)
    old = spec.distribution(parameters, observation)

    def kl(flat: Array) -> Array:
        return jnp.mean(old.kl(spec.distribution(unravel(flat), observation)))

    return lambda v: jax.jvp(jax.grad(kl), (theta,), (v,))[1]


def fisher_rows(transitions: int, num_envs: int, every: int) -> slice | np.ndarray:
    """Which transitions t N + n of N environments make the Fisher matrix: one in `every`.

    Every k-th in the flat order would be those of some environments only where k and N have a
    common divisor. There each environment gives its every k-th step instead, n steps later for the
    n-th, so that all of them and all times take part.
    """
    if math.gcd(num_envs, every) == 1:
        return slice(None, None, every)
    t, n = np.divmod(np.arange(transitions), num_envs)
    return np.flatnonzero((t + n) % every == 0)


def _loop(round_: Callable[[Any], Any], state: Any, times: int) -> Any:
    return jax.lax.fori_loop(0, times, lambda _, state: round_(state), state)


@share
def compiled(
    config: TRPOConfig, spec: PolicySpec
) -> Callable[..., tuple[PolicyParameters, dict[str, Array]]]:
    """TRPO's step for one configuration, compiled once."""
    rows = fisher_rows(config.steps_per_iteration, config.num_envs, config.fisher_every)
    least = config.min_improvement * math.sqrt(2 * config.max_kl)

    def improve(
        old: PolicyParameters, data: Data, advantage: Array
    ) -> tuple[PolicyParameters, dict[str, Array]]:
        # The natural step is as long for a thousandth of an advantage as for the whole of it, so a
        # solved policy would go on at full length into whatever its critic gets wrong.
        unit = jnp.std(advantage)
        advantage = objectives.normalize_advantage(advantage)
        theta, unravel = ravel_pytree(old)
        pi_old = spec.distribution(old, data.observation)
        old_log_prob = pi_old.log_prob(data.action)

        def evaluate(displacement: Array) -> tuple[Array, Array]:
            pi = spec.distribution(unravel(theta + displacement), data.observation)
            gain = objectives.surrogate(pi.log_prob(data.action) - old_log_prob, advantage)
            return gain, jnp.mean(pi_old.kl(pi))

        start, gradient = jax.value_and_grad(lambda d: evaluate(d)[0])(jnp.zeros_like(theta))
        step = objectives.natural_step(
            fisher_product(spec, old, data.observation[rows]),
            gradient,
            config.max_kl,
            iterations=config.conjugate_gradient_iterations,
            damping=config.damping,
            loop=_loop,
        )
        displacement, found = objectives.line_search(
            evaluate,
            step,
            max_kl=config.max_kl,
            start=start,
            min_improvement=least / unit,
            candidates=config.backtracks,
            shrink=config.shrink,
            loop=_loop,
        )
        new = unravel(theta + displacement)
        return new, {
            "policy/objective": found.objective,
            "policy/entropy": jnp.mean(spec.distribution(new, data.observation).entropy()),
            "policy/gradient_norm": optax.tree.norm(gradient),
            "policy/kl": mean_kl(spec, old, new, data.observation),
            "trust_region/accepted": found.accepted,
            "trust_region/backtracks": found.backtracks,
            "trust_region/improvement": found.improvement * unit,
        }

    return jit(improve)
