"""What every on-policy method shares: collect with the current policy, update it, repeat."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from tether.control.initial_policy import InitialPolicy
from tether.control.normalization import RewardScaler
from tether.control.parameters import PolicyParameters
from tether.control.policy_learner import PolicyConfig, PolicyLearner, check_finite
from tether.control.rollout import Collector, Rollout
from tether.learning.learner import Metrics, State

MAY_BE_UNDEFINED = frozenset({"value/explained_variance"})
"""Metrics that are NaN without harm: nothing is explained where all targets are equal."""


NO_SAFEGUARDS: Final[dict[str, Any]] = {
    "clip_reward": None,
    "initial_kl_coefficient": 0.0,
    "initial_kl_budget": None,
    "measure_initial_kl": False,
}
"""Settings against reward hacking, which no publication of these methods has."""


class OnPolicyConfig(PolicyConfig):
    """Settings shared by every on-policy method."""

    num_envs: int = Field(32, ge=1)
    """Environments stepped side by side. With more of them, steps are cheaper and each environment
    advances less per iteration."""
    steps_per_iteration: int = Field(2048, ge=1)
    """Transitions collected before each update, counted over all environments (usual: 1024 to
    8192)."""
    gamma: float = Field(0.99, ge=0, le=1)
    """The discount factor. Raising it looks further ahead and adds variance (usual: 0.98 to
    0.999)."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda. 1 gives the Monte-Carlo advantage, 0 the one-step TD error (usual: 0.9 to
    0.98)."""
    hidden: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of the value network, which are separate
    networks."""
    normalize_reward: bool = True
    """Divides rewards by the running standard deviation of the discounted return."""
    clip_reward: float | None = Field(None, gt=0)
    """Clips every reward to this size before anything is learned from it; returns are reported
    unclipped (Atari: 1). None by default."""
    initial_kl_coefficient: float = Field(0.0, ge=0)
    """The KL coefficient: the reward lost per nat of divergence from the policy that training began
    with (--init-from, or the fresh one). Raising it stays nearer; 0 has no penalty."""
    initial_kl_budget: float | None = Field(None, gt=0)
    """Training ends before an update whose policy would be further than this from the policy that
    training began with, in nats of KL divergence a step. No budget by default."""
    measure_initial_kl: bool = False
    """Measures `policy/initial_kl`, the KL divergence from the policy that training began with,
    also without a penalty or a budget."""
    stagger: bool = True
    """Cuts the first episodes of the environments at different times, so that the environments do
    not reach their episode limits at the same time."""

    @property
    def watches_initial(self) -> bool:
        """Whether the policy that training began with is kept beside the one that learns."""
        budget = self.initial_kl_budget is not None
        return self.measure_initial_kl or self.initial_kl_coefficient > 0 or budget

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.steps_per_iteration % self.num_envs:
            divisors = [n for n in range(1, 4097) if self.steps_per_iteration % n == 0]
            near = min(divisors, key=lambda n: abs(n - self.num_envs))
            raise ValueError(
                f"steps_per_iteration={self.steps_per_iteration} is not a multiple of "
                f"num_envs={self.num_envs}; choose a num_envs that divides it, such as {near}"
            )
        return self


class OnPolicyLearner(PolicyLearner):
    """Collect, estimate, update: the skeleton of REINFORCE, A2C, TRPO and PPO.

    A method derives from it, creates its own parameters in `init` and moves them in `update`.
    """

    config: OnPolicyConfig
    config_class: ClassVar[type[PolicyConfig]] = OnPolicyConfig

    def _begin(self, seeds: Sequence[int], weights: np.random.Generator) -> None:
        config, env = self.config, self.env
        self.iterations = 0
        self._started = 0
        scaler = RewardScaler(env.num_envs, config.gamma) if config.normalize_reward else None
        self.initial = InitialPolicy(self.policy) if config.watches_initial else None
        self._over_budget = False
        self.collector = Collector(
            env,
            self.policy,
            self._acting,
            scaler,
            clip_reward=config.clip_reward,
            initial=self.initial,
            initial_kl_coefficient=config.initial_kl_coefficient,
        )
        self.init(weights)
        self.collector.reset(seeds, stagger=config.stagger)

    @classmethod
    def environments(cls, config: Any) -> int:
        """The setting `num_envs`."""
        return int(config.num_envs)

    @abstractmethod
    def init(self, rng: np.random.Generator) -> None:
        """Create what the method learns beside the policy (critic, optimizers)."""

    @abstractmethod
    def update(self, rollout: Rollout) -> Metrics:
        """Improve the policy from one rollout."""

    @abstractmethod
    def method_state(self) -> State:
        """The method's own part of the state (critic, optimizers)."""

    @abstractmethod
    def restore_method(self, state: State) -> None:
        """Undo :meth:`method_state`."""

    @property
    def steps(self) -> int:
        """Environment steps taken so far."""
        return self.collector.steps

    @property
    def finished(self) -> bool:
        """Whether the next update would leave the budget of KL divergence."""
        return self._over_budget

    @property
    def progress(self) -> float:
        """The fraction of the run's steps taken before this iteration, in [0, 1)."""
        return min(1.0, self._started / self.total_steps)

    def collect(self) -> Rollout:
        """One rollout, whose episodes are counted."""
        rollout = self.collector.collect(self.config.steps_per_iteration // self.config.num_envs)
        truths = rollout.episode_true_returns
        self._episodes.extend(
            rollout.episode_returns.tolist(),
            rollout.episode_lengths.tolist(),
            None if truths is None else truths.tolist(),
            rollout.episode_statistics,
        )
        return rollout

    def episodes(self) -> Metrics:
        """`return/...` and `episode/...` so far."""
        return self._episodes.metrics()

    def iterate(self) -> Metrics:
        """One rollout and one update."""
        self._started = self.steps
        before = self.policy.parameters
        rollout = self.collect()
        metrics = self.update(rollout)
        if self.initial is not None:
            metrics["policy/initial_kl"] = self._within_budget(rollout, before)
        self.iterations += 1
        check_finite(metrics, self.steps, MAY_BE_UNDEFINED)
        return {**self.episodes(), **metrics}

    def _within_budget(self, rollout: Rollout, before: PolicyParameters) -> float:
        """The divergence from the initial policy, whose budget the policy never leaves, in nats."""
        assert self.initial is not None
        states = rollout.raw_observation, rollout.observation
        kl = self.initial.kl(self.policy, *states)
        budget = self.config.initial_kl_budget
        if budget is None or kl <= budget:
            return kl
        self.policy.parameters, self._over_budget = before, True
        return self.initial.kl(self.policy, *states)

    def state(self) -> State:
        """Everything that decides the future of the run."""
        initial = {} if self.initial is None else {"initial": self.initial.state()}
        return {
            **initial,
            "over_budget": self._over_budget,
            "policy": self.policy.state(),
            "collector": self.collector.state(),
            "method": self.method_state(),
            **self._random_state(),
            "iterations": self.iterations,
            **self._episodes.state(),
        }

    def restore(self, state: State) -> None:
        """Undo :meth:`state`: the run continues with the same numbers."""
        restored: Any = state
        self._take_policy(restored["policy"])
        self.collector.restore(restored["collector"])
        self.restore_method(restored["method"])
        self._restore_random(restored)
        self.iterations = int(restored["iterations"])
        self._over_budget = bool(restored.get("over_budget", False))
        if self.initial is not None:
            self.initial.restore(restored["initial"])
        self._episodes.restore(restored)
