"""Behaviour cloning: supervised learning of what a demonstrator did (Pomerleau 1989).

    collect demonstrations; treat them as independent pairs (s, a)
    minimize  L = -E[log pi_theta(a|s)]

The loss of episodes that were held out says when to stop, and the parameters that were best on them
are the policy. Often it is a beginning: `tether train ppo --init-from RUN` goes on from there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax
from jax import numpy as jnp
from pydantic import Field, field_validator

from tether import objectives
from tether.control.compilation import share
from tether.control.demonstrations import load_demonstrations
from tether.control.device import jit, on_cpu
from tether.control.evaluation import evaluate
from tether.control.experts import EXPERTS, expert_named
from tether.control.optimizer import adam, descend, moments_from_state, moments_to_state
from tether.control.parameters import (
    PolicyParameters,
    parameters_from_state,
    parameters_to_state,
)
from tether.control.policy import PolicySpec
from tether.control.policy_learner import PolicyConfig, PolicyLearner, check_finite
from tether.errors import UserError
from tether.learning.learner import Metrics, State

Array = Any


class BCConfig(PolicyConfig):
    """Settings of behaviour cloning."""

    demonstrations: Path | None = None
    """The folder of demonstrations: one that `tether evaluate RUN --record DIR` wrote, or a Minari
    dataset; or cartpole-expert, the demonstrations that come with tether."""
    minibatch_size: int = Field(64, ge=1)
    """Pairs in a gradient step (usual: 32 to 1024)."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size. Raising it learns faster until it diverges (usual: 1e-4 to 3e-3)."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """The fraction of the episodes that is kept out of training, to tell when to stop; with 0 all
    are used and training never stops early."""
    patience: int = Field(10, ge=1)
    """Training stops after this many epochs without a better held-out loss."""
    min_log_std: float = -3.0
    """The smallest log standard deviation. Demonstrations without noise would lower it without end,
    and a method that continues from the clone needs some noise to explore with."""
    evaluate_every: int = Field(10, ge=1)
    """Epochs between two evaluations in the environment; the last epoch is evaluated as well."""
    evaluation_episodes: int = Field(10, ge=0)
    """Whole episodes of an evaluation, with the most probable actions; 0 never evaluates."""

    @field_validator("demonstrations")
    @classmethod
    def _from_anywhere(cls, path: Path | None) -> Path | None:
        # A run may be resumed from another folder than it was started in.
        if path is None or expert_named(path):
            return path
        return path.expanduser().resolve()


class Pairs(NamedTuple):
    """State-action pairs as the compiled functions take them."""

    observation: Array  # (M, *obs), normalized
    action: Array  # (M, *act)


class Compiled(NamedTuple):
    """The compiled pieces, shared by every learner with the same settings."""

    optimizer: optax.GradientTransformation
    epoch: Callable[..., tuple[PolicyParameters, Any, Array]]
    loss: Callable[..., Array]


class BehaviourCloning(PolicyLearner):
    """A policy that imitates; an iteration is one epoch, and its steps are pairs."""

    config: BCConfig
    config_class: ClassVar[type[PolicyConfig]] = BCConfig

    @classmethod
    def environments(cls, config: Any) -> int:
        return max(1, int(config.evaluation_episodes))

    def _begin(self, seeds: Sequence[int], weights: np.random.Generator) -> None:
        config, normalizer = self.config, self.policy.normalizer
        if config.demonstrations is None:
            raise UserError(
                "bc learns from demonstrations and was given none; give --demonstrations PATH, a "
                "folder of `tether evaluate RUN --record DIR` or a Minari dataset, or "
                f"--demonstrations {EXPERTS[0]}, which comes with tether"
            )
        given = load_demonstrations(config.demonstrations, self.spec.source_space, self.spec.head)
        self._fingerprint = hashlib.sha256(b"".join(a.tobytes() for a in given)).hexdigest()
        held = self._hold_out(given.length)
        # A policy to begin with brings its own statistics, under which its parameters mean what
        # they mean.
        if normalizer is not None and normalizer.moments.count == 0:
            normalizer.update(given.observation[~held])
        self._given = [(given.observation[k], given.action[k]) for k in (~held, held)]
        self._see()
        self._compiled = compiled(config, self.spec)
        self._current = self.policy.parameters
        self._moments = self._compiled.optimizer.init(self._current)
        self.epochs = 0
        self._best = math.inf
        self._waited = 0
        self._evaluated = 0

    @property
    def steps(self) -> int:
        """Pairs learnt from so far, each as often as it came up."""
        return self.epochs * len(self._learnt.action)

    @property
    def finished(self) -> bool:
        """Whether the held-out loss has not fallen for `patience` epochs."""
        return self._waited >= self.config.patience

    def iterate(self) -> Metrics:
        """One epoch, and where it led on the episodes that were held out."""
        order = self.rng.permutation(len(self._learnt.action))
        self._current, self._moments, loss = self._compiled.epoch(
            self._current, self._moments, self._learnt, *batches(order, self.config.minibatch_size)
        )
        self.epochs += 1
        metrics: Metrics = {"imitation/loss": float(loss)}
        if len(self._held_out.action):
            held_out = self._loss_held_out()
            self._waited = 0 if held_out < self._best else self._waited + 1
            if not self._waited:
                self._best, self.policy.parameters = held_out, self._current
            metrics["imitation/held_out_loss"] = held_out
            metrics["imitation/best_held_out_loss"] = self._best
        else:
            self.policy.parameters = self._current
        check_finite(metrics, self.steps)
        return {**self._evaluation(), **metrics, "imitation/epochs": self.epochs}

    def state(self) -> State:
        return {
            "policy": self.policy.state(),
            "current": parameters_to_state(self._current),
            "moments": moments_to_state(self._moments),
            "epochs": self.epochs,
            "best": self._best,
            "waited": self._waited,
            "evaluated": self._evaluated,
            "demonstrations": self._fingerprint,
            **self._random_state(),
        }

    def restore(self, state: State) -> None:
        restored: Any = state
        if restored["demonstrations"] != self._fingerprint:
            raise UserError(
                f"the demonstrations at {self.config.demonstrations} are not those this run began "
                "with; put them back, or start a new run"
            )
        self._take_policy(restored["policy"])
        self._see()
        self._current = parameters_from_state(restored["current"], self._current)
        self._moments = moments_from_state(self._moments, restored["moments"])
        self.epochs = int(restored["epochs"])
        self._best = float(restored["best"])
        self._waited = int(restored["waited"])
        self._evaluated = int(restored["evaluated"])
        self._restore_random(restored)

    def _see(self) -> None:
        """The pairs to learn from and those held out, as the policy of this moment sees them."""
        with on_cpu():
            self._learnt, self._held_out = (
                Pairs(jnp.asarray(self.policy.normalize(seen)), jnp.asarray(action))
                for seen, action in self._given
            )

    def _hold_out(self, length: np.ndarray) -> np.ndarray:
        """Which pairs are held out, (M,) bool: those of whole episodes, chosen by the seed."""
        share, episodes = self.config.held_out, len(length)
        if share and episodes < 2:
            raise UserError(
                f"the demonstrations are {episodes} episode, and held_out={share} needs at least 2 "
                "to tell when to stop; give more, or set held_out to 0"
            )
        count = min(episodes - 1, math.ceil(share * episodes))
        held = np.zeros(episodes, bool)
        held[self.rng.permutation(episodes)[:count]] = True
        return np.repeat(held, length)

    def _loss_held_out(self) -> float:
        order = np.arange(len(self._held_out.action))
        rows, counts = batches(order, max(64, self.config.minibatch_size))
        return float(self._compiled.loss(self._current, self._held_out, rows, counts))

    def _evaluation(self) -> Metrics:
        """How the policy does in the environment, in the epochs in which that is asked."""
        config = self.config
        last = self.finished or self.steps >= self.total_steps
        if not config.evaluation_episodes or not (last or self.epochs % config.evaluate_every == 0):
            return {}
        result = evaluate(self.policy, self.env, episodes=config.evaluation_episodes).summary()
        self._evaluated += int(result["episodes"])
        returns = {f"return/{k}": result[f"return_{k}"] for k in ("mean", "std", "min", "max")}
        if "true_return_mean" in result:
            returns["true_return/mean"] = result["true_return_mean"]
            returns["true_return/std"] = result["true_return_std"]
        return {
            **returns,
            "episode/length": result["length_mean"],
            "episode/count": self._evaluated,
        }


def batches(order: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of minibatches (K, size) int32, and which of their entries count, (K, size) bool.

    The last row is filled up with what does not count, so that every row has one shape.
    """
    missing = -len(order) % size
    rows = np.pad(order.astype(np.int32), (0, missing)).reshape(-1, size)
    counts = np.pad(np.ones(len(order), bool), (0, missing)).reshape(-1, size)
    return rows, counts


@share
def compiled(config: BCConfig, spec: PolicySpec) -> Compiled:
    """An epoch, and the loss without learning, for one configuration."""
    optimizer = adam(1e-8, None)

    def terms(parameters: PolicyParameters, pairs: Pairs, rows: Array) -> Array:
        return spec.distribution(parameters, pairs.observation[rows]).log_prob(pairs.action[rows])

    def epoch(
        parameters: PolicyParameters, moments: Any, pairs: Pairs, order: Array, counts: Array
    ) -> tuple[PolicyParameters, Any, Array]:
        def step(carry: Any, batch: Any) -> Any:
            rows, count = batch

            def loss(parameters: PolicyParameters) -> Any:
                error = objectives.behaviour_cloning(terms(parameters, pairs, rows), count)
                return error, {"loss": error}

            parameters, moments, metrics, _ = descend(
                optimizer, loss, carry[0], carry[1], config.learning_rate
            )
            floor = jnp.maximum(parameters.log_std, config.min_log_std)
            parameters = parameters._replace(log_std=floor)
            return (parameters, moments), metrics["loss"] * jnp.sum(count)

        (parameters, moments), sums = jax.lax.scan(step, (parameters, moments), (order, counts))
        return parameters, moments, jnp.sum(sums) / jnp.sum(counts)

    def loss(parameters: PolicyParameters, pairs: Pairs, order: Array, counts: Array) -> Array:
        sums = jax.lax.map(
            lambda batch: objectives.behaviour_cloning(
                terms(parameters, pairs, batch[0]), batch[1], reduction="sum"
            ),
            (order, counts),
        )
        return jnp.sum(sums) / jnp.sum(counts)

    return Compiled(optimizer, jit(epoch), jit(loss))
