"""What every method that learns a policy in an environment shares, however it learns.

:mod:`tether.control.training` trains, resumes and saves anything that derives from
:class:`PolicyLearner`; :class:`tether.control.learner.OnPolicyLearner` adds rollouts and batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt

from tether.control.architectures import PolicyNetwork, network_name
from tether.control.device import on_cpu
from tether.control.envs import VectorEnv
from tether.control.envs.spaces_json import space_in_words
from tether.control.networks import Activation
from tether.control.normalization import ObservationNormalizer
from tether.control.policy import Policy, PolicySpec
from tether.control.recent_episodes import RecentEpisodes
from tether.errors import NonFiniteError, UserError
from tether.learning.config import Config
from tether.learning.learner import Metrics, State
from tether.learning.seeding import Stream, derived_seed, generator


class PolicyConfig(Config):
    """Settings of every policy."""

    hidden: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the policy's hidden layers."""
    activation: Activation = "tanh"
    """Function between the layers of the policy and of its critic."""
    initial_log_std: float = -1.0
    """The initial log standard deviation of every Box action. Raising it explores more."""
    normalize_observation: bool = True
    """Normalizes observations by their running mean and standard deviation."""
    scale_actions: bool = True
    """Measure Box actions in units in which their finite bounds are -1 and 1."""


class PolicyLearner(ABC):
    """A policy in the middle of learning, in an environment.

    Args:
        config: the method's settings.
        env: a vector environment nobody else steps, of as many copies as :meth:`environments` says.
        seed: decides everything random: weights, environments, actions, minibatches.
        total_steps: steps the run is meant to take, for schedules.
        initial: a policy to begin with, of equal spaces and network; its parameters and the
            statistics of its normalization are copied, and the statistics stay as they are.
        network: the user's own network for policy and critic, in place of the built-in one.
    """

    config: PolicyConfig
    config_class: ClassVar[type[PolicyConfig]] = PolicyConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}

    def __init__(
        self,
        config: PolicyConfig,
        env: VectorEnv,
        *,
        seed: int,
        total_steps: int,
        initial: Policy | None = None,
        network: PolicyNetwork | None = None,
    ) -> None:
        self.config = config
        self.env = env
        self.total_steps = total_steps
        weights, self.rng, self._acting = (
            generator(seed, purpose)
            for purpose in (Stream.WEIGHTS, Stream.MINIBATCHES, Stream.ACTING)
        )
        self.spec = PolicySpec.of(
            env.source_observation_space,
            env.action_space,
            config.hidden,
            config.normalize_observation,
            activation=config.activation,
            scale_actions=config.scale_actions,
            network=network,
        )
        normalizer = (
            ObservationNormalizer(self.spec.observation_space.shape)
            if self.spec.normalize
            else None
        )
        self.policy = Policy(self.spec, self.spec.init(weights, config.initial_log_std), normalizer)
        if initial is not None:
            check_same_policy(initial.spec, self.spec)
            self._take_policy(initial.state())
            if normalizer is not None:
                # They are part of what the policy does: statistics of a few demonstrations would be
                # outweighed within some batches, and the policy undone without a single update.
                normalizer.fixed = True
        self._episodes = RecentEpisodes()
        with on_cpu():
            self._begin(training_seeds(seed, env.num_envs), weights)

    @abstractmethod
    def _begin(self, seeds: Sequence[int], weights: np.random.Generator) -> None:
        """Create what is learnt beside the policy, from `weights`, and start the environments.

        Environment i starts from `seeds[i]`.
        """

    @classmethod
    @abstractmethod
    def environments(cls, config: Any) -> int:
        """How many copies of the environment the method steps side by side."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Experience consumed so far, which the budget counts: environment steps, or pairs."""

    @property
    def finished(self) -> bool:
        """Whether more iterations would change nothing, though the budget is not used up."""
        return False

    @abstractmethod
    def iterate(self) -> Metrics:
        """One unit of learning."""

    @abstractmethod
    def state(self) -> State:
        """Everything that decides the future; ``policy`` is the policy's own state."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Undo :meth:`state`."""

    def close(self) -> None:
        """Release the environments."""
        self.env.close()

    def _take_policy(self, state: dict[str, Any]) -> None:
        """Become the policy that returned `state`."""
        self.policy.parameters = Policy.from_state(self.spec, state).parameters
        if self.policy.normalizer is not None:
            self.policy.normalizer.restore(state["normalizer"])

    def _random_state(self) -> State:
        return {
            "rng": dict(self.rng.bit_generator.state),
            "acting_rng": dict(self._acting.bit_generator.state),
        }

    def _restore_random(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self._acting.bit_generator.state = state["acting_rng"]


def training_seeds(seed: int, num_envs: int) -> list[int]:
    """Seeds of the environments of a training, 63 bits each.

    No two trainings share one, where consecutive integers would give trainings of neighbouring
    seeds almost the same environments.
    """
    return [derived_seed(seed, Stream.ENVIRONMENTS, i) for i in range(num_envs)]


def check_finite(
    metrics: Metrics, steps: int, may_be_undefined: frozenset[str] = frozenset()
) -> None:
    """Raise unless every metric is finite.

    Raises:
        NonFiniteError: a metric is NaN or infinite; the message names it and the step.
    """
    for name, value in metrics.items():
        if not np.isfinite(value) and name not in may_be_undefined:
            raise NonFiniteError(
                f"{name} became {value} at step {steps}: the update diverged; lower the "
                "learning rate or check the reward's scale"
            )


def check_own_network(network: Any, config: PolicyConfig, usual: PolicyConfig) -> None:
    """Raise if settings of the built-in network are changed where the user's own takes its place.

    Raises:
        UserError: it names the setting.
    """
    given = [n for n in ("hidden", "activation") if getattr(config, n) != getattr(usual, n)]
    if network is not None and given:
        raise UserError(
            f"{given[0]} describes the built-in network, and network= replaces it; leave one out"
        )


def check_same_policy(theirs: PolicySpec, ours: PolicySpec) -> None:
    """Raise unless a policy of `theirs` can go on as one of `ours`.

    Raises:
        UserError: spaces, network or normalization differ; the message names both and says what
            to change.
    """
    for name, other, own in (
        ("observation space", theirs.source_space, ours.source_space),
        ("action space", theirs.head.space, ours.head.space),
    ):
        if other != own:
            raise UserError(
                f"the policy to begin with has the {name} {space_in_words(other)}, this "
                f"environment {space_in_words(own)}; expected equal spaces"
            )
    if theirs.head.units != ours.head.units:
        scales = "scales actions to their bounds" if theirs.head.units else "does not scale actions"
        raise UserError(
            f"the policy to begin with {scales}; give "
            f"--{'' if theirs.head.units else 'no-'}scale-actions"
        )
    if theirs.own_network is not ours.own_network:
        their_network, our_network = (
            "the built-in network" if spec.own_network is None else network_name(spec.own_network)
            for spec in (theirs, ours)
        )
        raise UserError(
            f"the policy to begin with has {their_network}, this training "
            f"{our_network}; expected the same network"
        )
    if ours.own_network is None and theirs.activation != ours.activation:
        raise UserError(
            f"the policy to begin with has the activation {theirs.activation}, this training "
            f"{ours.activation}; give --activation {theirs.activation}"
        )
    if ours.own_network is None and theirs.hidden != ours.hidden:
        raise UserError(
            f"the policy to begin with has hidden layers {theirs.hidden}, this training "
            f"{ours.hidden}; give --hidden {' '.join(map(str, theirs.hidden))}"
        )
    if theirs.normalize != ours.normalize:
        does = "normalizes" if theirs.normalize else "does not normalize"
        raise UserError(
            f"the policy to begin with {does} observations; give "
            f"--{'' if theirs.normalize else 'no-'}normalize-observation"
        )
