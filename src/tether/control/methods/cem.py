"""The cross-entropy method over a policy's parameters (Szita and Lorincz 2006).

    for each generation k:
        sample theta_i ~ N(mu, diag(sigma^2)),  i = 1..population
        R_i = return of whole episodes with the policy theta_i
        mu      <- mean of the best theta_i
        sigma^2 <- their variance + extra noise that decays to none

It knows no gradient, no critic and no time: a policy is a vector with a score. It is one of the six
methods of PPO's Figure 3. Exploration lies in the parameters alone, so members act without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from pydantic import Field, PositiveInt

from tether.control.device import jit
from tether.control.networks import Network, forward
from tether.control.parameters import PolicyParameters
from tether.control.policy_learner import PolicyConfig, PolicyLearner
from tether.errors import BadEnvironmentError
from tether.learning.config import When
from tether.learning.learner import Metrics, State


class CEMConfig(PolicyConfig):
    """Settings of the cross-entropy method."""

    applies: ClassVar[dict[str, When]] = {"initial_log_std": When(None)}

    population: int = Field(64, ge=2)
    """Policies in a generation, each in an environment of its own. A larger population searches
    more widely and more slowly."""
    elite_fraction: float = Field(0.1, gt=0, lt=1)
    """The fraction of the population that is selected. Lowering it is greedier and noisier (usual:
    0.05 to 0.25)."""
    episodes: int = Field(1, ge=1)
    """Whole episodes that score a policy. With more of them a score depends less on chance."""
    initial_std: float = Field(0.5, gt=0)
    """The initial standard deviation of every parameter."""
    extra_std: float = Field(0.25, ge=0)
    """The standard deviation that is added to that of the elites at the start, so that the search
    does not narrow too early."""
    extra_generations: int = Field(50, ge=1)
    """The number of generations over which that added variance falls linearly to zero."""
    longest_episode: int = Field(10_000, ge=1)
    """The step after which an episode is cut, for environments that set no episode limit
    themselves."""
    hidden: tuple[PositiveInt, ...] = ()
    """Widths of the hidden layers; no layers give a linear policy. Every layer multiplies the
    number of parameters to search."""


class CEM(PolicyLearner):
    """A diagonal Gaussian over the network's parameters; its mean is the policy."""

    config: CEMConfig
    config_class: ClassVar[type[PolicyConfig]] = CEMConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # Szita and Lorincz 2006: 100 members of which the best 10 stay, N(0, 100) to
        # begin with, noise Z_t = max(5 - t / 10, 0) added to the variance, linear in the features.
        # Their Tetris board scored a member by one game.
        "paper": {
            "population": 100,
            "elite_fraction": 0.1,
            "episodes": 1,
            "initial_std": 10.0,
            "extra_std": 5**0.5,
            "extra_generations": 50,
            "hidden": (),
            "normalize_observation": False,
        },
    }

    @classmethod
    def environments(cls, config: Any) -> int:
        return int(config.population)

    def _begin(self, seeds: Sequence[int], weights: np.random.Generator) -> None:
        self.mean = flatten(self.policy.parameters.network)
        self.variance = np.full(self.mean.shape, self.config.initial_std**2)
        self.generations = 0
        self._steps = 0
        self._forward: Any = jit(jax.vmap(self.spec.network.apply))

    @property
    def steps(self) -> int:
        """Steps of the episodes that were scored; what runs on beside them counts for nothing."""
        return self._steps

    @property
    def elites(self) -> int:
        """How many members survive."""
        return max(1, round(self.config.elite_fraction * self.config.population))

    def iterate(self) -> Metrics:
        """One generation."""
        config = self.config
        noise = self.rng.standard_normal((config.population, len(self.mean)))
        members = (self.mean + np.sqrt(self.variance) * noise).astype(np.float32)
        scores = self._play(members)
        # Stable, so that of equals the first survives, whatever sorts.
        best = np.argsort(-scores, kind="stable")[: self.elites]
        self.generations += 1
        left = max(0.0, 1 - self.generations / config.extra_generations)
        self.mean = members[best].mean(axis=0, dtype=float)
        self.variance = members[best].var(axis=0, dtype=float) + config.extra_std**2 * left
        if not left and self.policy.normalizer is not None:
            # Too narrow from here on to follow statistics that move: it would come undone.
            self.policy.normalizer.fixed = True
        parameters = self.policy.parameters
        network = unflatten(parameters.network, self.mean.astype(np.float32))
        self.policy.parameters = PolicyParameters(network, parameters.log_std)
        return {
            **self._episodes.metrics(),
            "population/return_mean": float(scores.mean()),
            "population/return_elite": float(scores[best].mean()),
            "population/return_best": float(scores.max()),
            "population/std": float(np.sqrt(self.variance).mean()),
        }

    def state(self) -> State:
        # Every generation resets the environments with a new seed: they carry nothing over.
        return {
            "policy": self.policy.state(),
            "mean": self.mean,
            "variance": self.variance,
            "generations": self.generations,
            "steps": self._steps,
            **self._random_state(),
            **self._episodes.state(),
        }

    def restore(self, state: State) -> None:
        restored: Any = state
        self._take_policy(restored["policy"])
        self.mean = np.asarray(restored["mean"])
        self.variance = np.asarray(restored["variance"])
        self.generations = int(restored["generations"])
        self._steps = int(restored["steps"])
        self._restore_random(restored)
        self._episodes.restore(restored)

    def _play(self, members: np.ndarray) -> np.ndarray:
        """The mean return of each member's whole episodes, (P,); members (P, D) float32."""
        env, policy, head, config = self.env, self.policy, self.spec.head, self.config
        networks = unflatten(policy.parameters.network, members)
        log_std = policy.parameters.log_std
        count = env.num_envs
        total, running, true = np.zeros(count), np.zeros(count), np.zeros(count)
        length, played, scores = (np.zeros(count, np.int64) for _ in range(3))
        raw = []
        observation = env.reset(self._acting.integers(2**63, size=count).tolist())
        self._check("observation", observation)
        while (alive := played < config.episodes).any():
            if policy.normalizer is not None:
                raw.append(observation[alive])
            outputs = self._outputs(networks, policy.normalize(observation))
            step = env.step(head.to_environment(head.distribution(outputs, log_std).mode()))
            self._check("reward", step.reward[alive])
            self._check("observation", step.observation)
            running += step.reward
            if step.true_reward is not None:
                true += step.true_reward
            length += 1
            self._steps += int(alive.sum())
            over = step.terminated | step.truncated
            ended = over | (length >= config.longest_episode)
            if ended.any():
                scored = ended & alive
                total[scored] += running[scored]
                scores[scored] += 1
                self._episodes.extend(
                    running[scored].tolist(),
                    length[scored].tolist(),
                    None if step.true_reward is None else true[scored].tolist(),
                    [step.statistics.get(n, {}) for n in np.flatnonzero(scored).tolist()],
                )
                # One that is cut here has no reset of its own and is scored no further.
                played[ended] += np.where(over[ended], 1, config.episodes)
                running[ended], true[ended], length[ended] = 0.0, 0.0, 0
            observation = step.observation
        if policy.normalizer is not None:
            policy.normalizer.update(np.concatenate(raw))
        return total / scores

    def _outputs(self, networks: Any, observation: np.ndarray) -> np.ndarray:
        """What each member's network (leading axis P) puts out for its own observation."""
        if self.spec.own_network is not None or networks.convolutions:
            return np.asarray(self._forward(networks, observation[:, None]))[:, 0]
        # NumPy multiplies stacks of matrices; a bias needs an axis for the one row of each.
        dense = tuple(layer._replace(bias=layer.bias[:, None]) for layer in networks.dense)
        outputs: np.ndarray = forward(
            Network((), dense), observation[:, None], self.spec.activation
        )[:, 0]
        return outputs

    def _check(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadEnvironmentError(
                f"{self.env.id} returned {array[~np.isfinite(array)].ravel()[0]} in its {name} "
                f"after step {self._steps}"
            )


def flatten(network: Any) -> np.ndarray:
    """A network's parameters as one vector (D,) float64, in the order of the tree's leaves."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(network)]).astype(float)


def unflatten(like: Any, vectors: np.ndarray) -> Any:
    """Vectors (..., D) as networks shaped like `like`, with the same leading axes."""
    leaves, tree = jax.tree.flatten(like)
    stops = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(vectors, stops, axis=-1)
    shaped = [
        part.reshape(*vectors.shape[:-1], *leaf.shape)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, shaped)
