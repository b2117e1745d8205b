"""What every on-policy method shares: collect with the current policy, update it, repeat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from tether.control.envs import VectorEnv
from tether.control.normalization import ObservationNormalizer, RewardScaler
from tether.control.policy import Policy, PolicySpec
from tether.control.rollout import Collector, Rollout
from tether.errors import NonFiniteError
from tether.learning.config import Config
from tether.learning.learner import Metrics, State

RETURN_WINDOW = 100
"""Episodes over which the training return is averaged (the paper's "last 100 episodes")."""


MAY_BE_UNDEFINED = frozenset({"value/explained_variance"})
"""Metrics that are NaN without harm: nothing is explained where all targets are equal."""


class OnPolicyConfig(Config):
    """Settings shared by every on-policy method."""

    num_envs: int = Field(32, ge=1)
    """Environments stepped side by side. More make steps cheaper and iterations shorter in time."""
    steps_per_iteration: int = Field(2048, ge=1)
    """Transitions collected before each update, over all environments (usual: 1024-8192)."""
    gamma: float = Field(0.99, ge=0, le=1)
    """Discount factor. Raising it looks further ahead and adds variance (usual: 0.98-0.999)."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda. 1 is the Monte-Carlo advantage, 0 the one-step TD error (usual: 0.9-0.98)."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the tanh layers of the policy and of the value network, which are separate."""
    initial_log_std: float = -1.0
    """Log standard deviation every Box action starts with. Raising it explores more."""
    normalize_observation: bool = True
    """Normalize observations by their running mean and standard deviation."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.steps_per_iteration % self.num_envs:
            raise ValueError(
                f"steps_per_iteration={self.steps_per_iteration} is not a multiple of "
                f"num_envs={self.num_envs}; expected for instance "
                f"{self.num_envs * max(1, round(self.steps_per_iteration / self.num_envs))}"
            )
        return self


class OnPolicyLearner(ABC):
    """Collect, estimate, update: the skeleton of REINFORCE, A2C, TRPO and PPO.

    A method derives from it, creates its own parameters in `init` and moves them in `update`.

    Args:
        config: the method's settings.
        env: a vector environment nobody else steps.
        seed: decides everything random: weights, environments, actions, minibatches.
        total_steps: environment steps the run is meant to take, for schedules.
    """

    config: OnPolicyConfig
    config_class: ClassVar[type[OnPolicyConfig]] = OnPolicyConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}

    def __init__(
        self, config: OnPolicyConfig, env: VectorEnv, *, seed: int, total_steps: int
    ) -> None:
        self.config = config
        self.env = env
        self.total_steps = total_steps
        self.iterations = 0
        self._started = 0
        weights, self.rng, acting = (
            np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)
        )
        self._acting = acting
        self.spec = PolicySpec.of(
            env.source_observation_space,
            env.action_space,
            config.hidden,
            config.normalize_observation,
        )
        normalizer = (
            ObservationNormalizer(self.spec.observation_space.shape)
            if self.spec.normalize
            else None
        )
        self.policy = Policy(self.spec, self.spec.init(weights, config.initial_log_std), normalizer)
        scaler = RewardScaler(env.num_envs, config.gamma) if config.normalize_reward else None
        self.collector = Collector(env, self.policy, acting, scaler)
        self._recent: deque[tuple[float, int]] = deque(maxlen=RETURN_WINDOW)
        self._episodes = 0
        self.init(weights)
        self.collector.reset(seed)

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
    def progress(self) -> float:
        """The fraction of the run's steps taken before this iteration, in [0, 1)."""
        return min(1.0, self._started / self.total_steps)

    def iterate(self) -> Metrics:
        """One rollout and one update."""
        self._started = self.steps
        rollout = self.collector.collect(self.config.steps_per_iteration // self.config.num_envs)
        self._recent.extend(
            zip(rollout.episode_returns.tolist(), rollout.episode_lengths.tolist(), strict=True)
        )
        self._episodes += len(rollout.episode_returns)
        metrics = self.update(rollout)
        self.iterations += 1
        for name, value in metrics.items():
            if not np.isfinite(value) and name not in MAY_BE_UNDEFINED:
                raise NonFiniteError(
                    f"{name} became {value} at step {self.steps}: the update diverged; lower the "
                    "learning rate or check the reward's scale (the last checkpoint is intact)"
                )
        return {**self._returns(), **metrics}

    def state(self) -> State:
        """Everything that decides the future of the run."""
        return {
            "policy": self.policy.state(),
            "collector": self.collector.state(),
            "method": self.method_state(),
            "rng": dict(self.rng.bit_generator.state),
            "acting_rng": dict(self._acting.bit_generator.state),
            "iterations": self.iterations,
            "episodes": self._episodes,
            "recent_returns": np.array([r for r, _ in self._recent], float),
            "recent_lengths": np.array([n for _, n in self._recent], np.int64),
        }

    def restore(self, state: State) -> None:
        """Undo :meth:`state`: the run continues with the same numbers."""
        restored: Any = state
        policy = Policy.from_state(self.spec, restored["policy"])
        self.policy.parameters = policy.parameters
        if self.policy.normalizer is not None:
            self.policy.normalizer.restore(restored["policy"]["normalizer"])
        self.collector.restore(restored["collector"])
        self.restore_method(restored["method"])
        self.rng.bit_generator.state = restored["rng"]
        self._acting.bit_generator.state = restored["acting_rng"]
        self.iterations = int(restored["iterations"])
        self._episodes = int(restored["episodes"])
        self._recent.clear()
        self._recent.extend(
            zip(
                restored["recent_returns"].tolist(),
                restored["recent_lengths"].tolist(),
                strict=True,
            )
        )

    def close(self) -> None:
        """Release the environments."""
        self.env.close()

    def _returns(self) -> Metrics:
        if not self._recent:
            return {"episode/count": self._episodes}
        returns, lengths = zip(*self._recent, strict=True)
        return {
            "return/mean": float(np.mean(returns)),
            "return/std": float(np.std(returns)),
            "return/min": float(np.min(returns)),
            "return/max": float(np.max(returns)),
            "episode/length": float(np.mean(lengths)),
            "episode/count": self._episodes,
        }
