"""Action distributions: what a policy's outputs mean in each action space.

Every action is a deterministic function of the distribution's parameters and of noise drawn
beforehand (reparameterization; for categories the Gumbel-max trick), so one seeded generator
decides a whole rollout, and sampling is the same arithmetic in NumPy and JAX.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from array_api_compat import array_namespace

from tether import objectives
from tether.control.action_units import BoundsMap
from tether.errors import BadEnvironmentError

Array = Any


class Distribution(Protocol):
    """A batch of independent action distributions, one per row."""

    def sample(self, noise: Array) -> Array:
        """The action that `noise` (as :meth:`ActionHead.noise` draws it) selects."""

    def mode(self) -> Array:
        """The most probable action."""

    def log_prob(self, action: Array) -> Array:
        """Log pi(a|s) in nats, (B,)."""

    def entropy(self) -> Array:
        """Entropy in nats, (B,)."""

    def kl(self, other: Any) -> Array:
        """KL(self || other) in nats, (B,), closed form."""


class DiagonalGaussian(NamedTuple):
    """Independent normals: `mean` (B, A), state-independent `log_std` (A,)."""

    mean: Array
    log_std: Array

    def sample(self, noise: Array) -> Array:
        xp = array_namespace(self.log_std)
        return self.mean + xp.exp(self.log_std) * noise

    def mode(self) -> Array:
        return self.mean

    def log_prob(self, action: Array) -> Array:
        xp = array_namespace(self.mean)
        z = (action - self.mean) * xp.exp(-self.log_std)
        return (
            xp.sum(-0.5 * z * z - self.log_std, axis=-1)
            - 0.5 * math.log(2 * math.pi) * self.mean.shape[-1]
        )

    def entropy(self) -> Array:
        xp = array_namespace(self.mean)
        entropy = objectives.diagonal_gaussian_entropy(self.log_std)
        return xp.broadcast_to(entropy, self.mean.shape[:-1])

    def kl(self, other: DiagonalGaussian) -> Array:
        return objectives.diagonal_gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)


class Categorical(NamedTuple):
    """Independent categories: `logits` (B, sum(sizes)), one block of logits per component."""

    logits: Array
    sizes: tuple[int, ...]

    def blocks(self, array: Array) -> list[Array]:
        """Split the last axis into the components' blocks."""
        stops = np.cumsum(self.sizes).tolist()
        return [
            array[..., stop - size : stop] for stop, size in zip(stops, self.sizes, strict=True)
        ]

    def sample(self, noise: Array) -> Array:
        return self._argmax(self.logits + noise)

    def mode(self) -> Array:
        return self._argmax(self.logits)

    def log_prob(self, action: Array) -> Array:
        xp = array_namespace(self.logits)
        total = 0.0
        for i, logits in enumerate(self.blocks(self.logits)):
            # A one-hot product instead of a gather: its gradient is dense, which XLA fuses.
            chosen = xp.arange(logits.shape[-1]) == action[..., i : i + 1]
            total = total + xp.sum(xp.where(chosen, _log_softmax(logits), 0.0), axis=-1)
        return total

    def entropy(self) -> Array:
        return sum(objectives.categorical_entropy(block) for block in self.blocks(self.logits))

    def kl(self, other: Categorical) -> Array:
        pairs = zip(self.blocks(self.logits), self.blocks(other.logits), strict=True)
        return sum(objectives.categorical_kl(p, q) for p, q in pairs)

    def _argmax(self, scores: Array) -> Array:
        xp = array_namespace(scores)
        return xp.stack([xp.argmax(block, axis=-1) for block in self.blocks(scores)], axis=-1)


class Bernoulli(NamedTuple):
    """Independent coins: `logits` (B, n), each the log-odds of a one."""

    logits: Array

    def sample(self, noise: Array) -> Array:
        return self.logits + noise > 0

    def mode(self) -> Array:
        return self.logits > 0

    def log_prob(self, action: Array) -> Array:
        xp = array_namespace(self.logits)
        signed = xp.where(action > 0, self.logits, -self.logits)
        return -xp.sum(xp.logaddexp(xp.zeros_like(signed), -signed), axis=-1)

    def entropy(self) -> Array:
        return objectives.bernoulli_entropy(self.logits)

    def kl(self, other: Bernoulli) -> Array:
        return objectives.bernoulli_kl(self.logits, other.logits)


class ActionHead(NamedTuple):
    """How a policy's outputs become actions of one Gymnasium space.

    Attributes:
        space: the action space of one environment.
        outputs: how many numbers the network must put out.
        scales: how many log standard deviations go with them (0 unless the space is a Box).
        sizes: number of choices of each categorical component (empty unless discrete).
        units: how the policy's actions become the environment's, or None where they are the same.
    """

    space: gym.Space[Any]
    outputs: int
    scales: int
    sizes: tuple[int, ...]
    units: BoundsMap | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored action: (A,), (components,) or (n,)."""
        return (len(self.sizes),) if self.sizes else (self.outputs,)

    @property
    def dtype(self) -> type[np.generic]:
        """Type of stored actions."""
        return np.float32 if self.scales else np.int32

    def distribution(self, outputs: Array, log_std: Array) -> Distribution:
        """The action distribution that network `outputs` (B, outputs) stand for."""
        if self.scales:
            return DiagonalGaussian(outputs, log_std)
        if self.sizes:
            return Categorical(outputs, self.sizes)
        return Bernoulli(outputs)

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise for `shape` actions, float32, (*shape, outputs)."""
        full = (*shape, self.outputs)
        if self.scales:
            return rng.standard_normal(full, np.float32)
        uniform = np.maximum(rng.random(full, np.float32), np.float32(1e-12))
        if self.sizes:
            return -np.log(-np.log(uniform) + np.float32(1e-12))
        return np.log(uniform) - np.log1p(-uniform)

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Stored actions (B, ...) as the environment wants them.

        A Box action is put into the environment's units and clipped to its bounds here and only
        here: the policy keeps, and learns from, the unclipped action whose density it knows.
        """
        space = self.space
        if isinstance(space, gym.spaces.Box):
            if self.units is not None:
                action = self.units.to_environment(action)
            action = action.reshape(-1, *space.shape)
            clipped: np.ndarray = np.minimum(np.maximum(action, space.low), space.high)
            bounded: np.ndarray = clipped.astype(space.dtype)
            return bounded
        if isinstance(space, gym.spaces.Discrete):
            choice: np.ndarray = action[..., 0].astype(space.dtype)
            choice += space.start
            return choice
        if isinstance(space, gym.spaces.MultiDiscrete):
            choices: np.ndarray = action.reshape(-1, *space.shape).astype(space.dtype)
            choices += space.start
            return choices
        bits: np.ndarray = action.reshape(-1, *(space.shape or ())).astype(space.dtype)
        return bits

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_environment`: actions (B, ...) of the space as a policy stores them.

        What clipping took away does not come back. Nothing is checked: see
        :mod:`tether.control.demonstrations`.
        """
        rows: np.ndarray = action.reshape(len(action), -1)
        if self.units is not None:
            rows = self.units.from_environment(rows)
        if isinstance(self.space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            rows = rows - np.ravel(self.space.start)
        stored: np.ndarray = rows.astype(self.dtype)
        return stored


def action_head(space: gym.Space[Any], *, scale_actions: bool = False) -> ActionHead:
    """The head for a Box, Discrete, MultiDiscrete or MultiBinary space.

    Args:
        space: the action space of one environment.
        scale_actions: whether a Box's finite bounds are -1 and 1 to the policy; see
            :mod:`tether.control.action_units`.

    Raises:
        BadEnvironmentError: for any other space.
    """
    if isinstance(space, gym.spaces.Box):
        n = int(np.prod(space.shape))
        return ActionHead(space, n, n, (), BoundsMap.of(space) if scale_actions else None)
    if isinstance(space, gym.spaces.Discrete):
        return ActionHead(space, int(space.n), 0, (int(space.n),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in np.ravel(space.nvec))
        return ActionHead(space, sum(sizes), 0, sizes)
    if isinstance(space, gym.spaces.MultiBinary):
        return ActionHead(space, int(np.prod(space.shape)), 0, ())
    raise BadEnvironmentError(
        f"action space {space} is not supported: expected Box, Discrete, MultiDiscrete or "
        "MultiBinary; wrap the environment to offer one of these"
    )


def _log_softmax(logits: Array) -> Array:
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
